"""Films on a page: pictures, drawings and a slider, without any other file. Without a script, the last tick stands."""

import base64
import html
import json

import numpy as np

from vla_jax.contracts.environment import STOP
from vla_jax.evaluation.turning_point import stage_of
from vla_jax.reporting.film import Film, optical_mm
from vla_jax.reporting.film_svg import ASCAN_X, BOTTOM, TOP, DepthAxis, path_svg, sensor_svg

STYLE = """\
.film { border-top: 1px solid rgba(128, 128, 128, .35); padding: 14px 0 6px; }
.film h3 { margin: 0 0 8px; font-size: 15px; }
.film .seen { display: flex; flex-wrap: wrap; gap: 10px 18px; align-items: flex-start; }
.film .views { flex: 1 1 330px; max-width: 620px; }
.film .views img { border-radius: 6px; }
.film .views div { display: flex; font-size: 12px; opacity: .75; }
.film .views span { flex: 1; }
.film dl { flex: 1 1 240px; max-width: 340px; margin: 0; display: grid; grid-template-columns: auto 1fr; gap: 1px 12px;
  font-size: 13.5px; font-variant-numeric: tabular-nums; align-content: start; }
.film dt { opacity: .75; }
.film dd { margin: 0; text-align: right; }
.film .drawn { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 10px; }
.film svg { flex: 1 1 260px; min-width: 0; max-width: 620px; height: auto; }
.film svg.wide { flex: 1.3 1 338px; }
.film text { fill: currentColor; }
.film text.name { font-weight: 600; }
.film .frame { fill: none; stroke: currentColor; stroke-opacity: .35; }
.film .goal { stroke: currentColor; stroke-opacity: .3; stroke-dasharray: 2 3; }
.film .layer { stroke-width: 1.4; stroke-opacity: .85; }
.film .stop { stroke-width: 1.6; stroke-dasharray: 6 4; }
.film .path, .film .trail, .film .ascan { fill: none; }
.film .path { stroke: #2563eb; stroke-opacity: .35; }
.film .trail { stroke: #2563eb; stroke-width: 2.2; }
.film .tip { fill: #2563eb; stroke: #fff; stroke-width: 1.2; }
.film .ascan { stroke: currentColor; stroke-width: 1; }
.film .cursor { stroke: #2563eb; stroke-opacity: .6; }
.film .controls { display: flex; flex-wrap: wrap; gap: 10px; align-items: center; margin: 10px 0 4px; }
.film .controls[hidden] { display: none; }
.film button, .film select { font: inherit; color: inherit; background: transparent; min-height: 34px;
  border: 1px solid rgba(128, 128, 128, .6); border-radius: 7px; padding: 2px 12px; }
.film select option { color: #111827; background: #fff; }
.film button { min-width: 76px; cursor: pointer; }
.film input { flex: 1 1 140px; accent-color: #2563eb; min-height: 34px; margin: 0; }
.film :focus-visible { outline: 2px solid #2563eb; outline-offset: 2px; }
@media print { .film { break-inside: avoid; } .film .controls { display: none; } }
"""

SCRIPT = """\
for (const film of document.querySelectorAll(".film")) {
  const data = JSON.parse(film.querySelector("script").textContent), last = data.time.length - 1;
  const slider = film.querySelector("input"), button = film.querySelector("button");
  const speed = film.querySelector("select"), picture = film.querySelector(".views img");
  const ascan = film.querySelector(".ascan"), cursor = film.querySelector(".cursor");
  const values = ascan && Uint8Array.from(atob(data.ascan.values), (c) => c.charCodeAt(0));
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const moving = [...film.querySelectorAll(".moving")].map((group) => {
    const trail = group.querySelector(".trail");
    return { trail, tip: group.querySelector(".tip"), points: trail.getAttribute("points").split(" ") };
  });
  const place = (element, attributes) => {
    for (const name in attributes) element.setAttribute(name, attributes[name]);
  };
  const drawAscan = (tick) => {
    const { start, mm, air, top, bottom, topMm, bottomMm, left, right } = data.ascan;
    const bins = values.length / data.time.length, path = [];
    for (let bin = 0; bin < bins; bin++) {
      let depth = start[tick] + (bin + 0.5) * mm;
      if (depth < 0) depth *= air;
      if (depth < topMm || depth > bottomMm) continue;
      const y = top + (depth - topMm) / (bottomMm - topMm) * (bottom - top);
      path.push((left + (right - left) * values[tick * bins + bin] / 255).toFixed(1) + " " + y.toFixed(1));
    }
    ascan.setAttribute("d", path.length ? "M" + path.join("L") : "");
    const x = moving[0].points[tick].split(",")[0];
    place(cursor, { x1: x, x2: x });
  };
  const show = (tick) => {
    slider.value = tick;
    slider.setAttribute("aria-valuetext", data.time[tick].toFixed(1) + " s");
    if (picture) picture.src = "data:image/webp;base64," + data.frames[data.frame[tick]];
    film.querySelectorAll("dd").forEach((cell, row) => (cell.textContent = data.readings[row][tick]));
    for (const { trail, tip, points } of moving) {
      const [cx, cy] = points[tick].split(",");
      trail.setAttribute("points", points.slice(0, tick + 1).join(" "));
      place(tip, { cx, cy });
    }
    if (ascan) drawAscan(tick);
  };
  let timer = 0;
  const stop = () => { clearInterval(timer); timer = 0; button.textContent = "Play"; };
  const play = () => {
    if (Number(slider.value) === last) show(0);
    button.textContent = "Pause";
    // Who wants less motion gets one picture a second.
    const rate = data.rate * speed.value, step = still.matches ? Math.max(1, Math.round(rate)) : 1;
    timer = setInterval(() => {
      const next = Math.min(Number(slider.value) + step, last);
      show(next);
      if (next === last) stop();
    }, 1000 * step / rate);
  };
  button.addEventListener("click", () => (timer ? stop() : play()));
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  speed.addEventListener("change", () => { if (timer) { stop(); play(); } });
  film.querySelector(".controls").hidden = false;
  show(last);
}
"""


def film_html(film: Film) -> str:
    """Returns a film with its title, outcome and controls. The page must hold `STYLE`, and below it `SCRIPT`."""
    rollout, scene = film.rollout, film.rollout.outcome.scene
    readings = _readings(film)
    axis = DepthAxis(scene) if scene else None
    drawn = []
    data = {
        "rate": 1.0 / max(float(np.median(np.diff(rollout.time_s))), 1e-3),
        "time": np.round(rollout.time_s - rollout.time_s[0], 3).tolist(),
        "frame": film.frame_of_tick.tolist(),
        "frames": [base64.b64encode(frame).decode() for frame in film.frames],
        "readings": list(readings.values()),
    }
    if scene and axis:
        if film.ascans is not None:
            drawn.append(sensor_svg(film, scene, axis))
            data["ascan"] = {
                "values": base64.b64encode(film.ascans.tobytes()).decode(),
                "start": np.round(optical_mm(scene.tip_mm[:, 2], scene), 4).tolist(),
                "mm": film.bin_mm,
                "air": scene.air_index,
                "top": TOP, "bottom": BOTTOM, "topMm": axis.top_mm, "bottomMm": axis.bottom_mm,
                "left": ASCAN_X[0], "right": ASCAN_X[1],
            }  # fmt: skip
        drawn.append(path_svg(rollout, scene, axis))
    values = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(texts[-1])}</dd>" for name, texts in readings.items()
    )
    # Nothing in a script element may look like its end.
    encoded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    outcome = (
        "success" if rollout.outcome.success else (rollout.outcome.failure or "failure").replace("_", " ")
    )
    title = f"{film.title}: {outcome}, seed {rollout.seed}"
    return (
        f'<div class="film" role="group" aria-label="{html.escape(title)}">\n<h3>{html.escape(title)}</h3>\n'
        f'<div class="seen">{_pictures(film)}<dl>{values}</dl></div>\n'
        f'<div class="drawn">{"".join(drawn)}</div>\n{_controls(len(rollout.time_s) - 1)}'
        f'<script type="application/json">{encoded}</script>\n</div>'
    )


def _pictures(film: Film) -> str:
    if not film.frames:
        return ""
    encoded = base64.b64encode(film.frames[int(film.frame_of_tick[-1])]).decode()
    names = "".join(f"<span>{html.escape(view)}</span>" for view in film.views)
    return (
        f'<div class="views"><img alt="{html.escape(", ".join(film.views))}" '
        f'src="data:image/webp;base64,{encoded}"><div>{names}</div></div>'
    )


def _controls(last: int) -> str:
    speeds = "".join(f'<option value="{speed}">{speed}×</option>' for speed in (1, 2, 4))
    return (
        '<div class="controls" hidden><button type="button">Play</button>'
        f'<input type="range" min="0" max="{last}" value="{last}" step="1" aria-label="time">'
        f'<select aria-label="speed">{speeds}</select></div>\n'
    )


def _readings(film: Film) -> dict[str, list[str]]:
    """Returns what is written beside the pictures at each tick: name → text of each tick."""
    rollout, scene = film.rollout, film.rollout.outcome.scene
    readings = {"time": [f"{value:.1f} s" for value in rollout.time_s - rollout.time_s[0]]}
    if scene is None:
        return readings
    depth = scene.tip_mm[:, 2]
    readings["depth of the tip"] = [f"{value:.2f} mm" for value in depth]
    readings["layer"] = [stage_of(float(value), scene.layers_mm) for value in depth]
    if STOP in scene.layers_mm:
        readings["to the stop"] = [f"{scene.layers_mm[STOP] - value:.2f} mm" for value in depth]
    readings["sideways"] = [f"{value:.2f} mm" for value in np.linalg.norm(scene.tip_mm[:, :2], axis=1)]
    readings["force"] = [f"{value:.2f} N" for value in scene.force_n]
    return readings
