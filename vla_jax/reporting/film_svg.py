"""The drawings of a film: A-scan, A-scans over time (M-mode) and path of the tip, with one axis of depth.

SVG whose text and axes take the page's colour. What the page's program changes bears a class: `ascan`, `cursor`, and
in a group `moving` the `trail` behind the `tip`. As drawn, it shows the last tick.
"""

import base64
import html
from collections.abc import Mapping, Sequence

import numpy as np

from vla_jax.contracts.environment import STOP, Scene
from vla_jax.evaluation.closed_loop import Rollout
from vla_jax.reporting.film import Film, mmode, webp

HEIGHT, TOP, BOTTOM = 330, 24, 290  # of a drawing and of its panels, in its own units
LETTERS = 12
LAYER_COLOURS = ("#0891b2", "#d97706", "#7c3aed", "#be185d", "#65a30d")
STOP_COLOUR = "#dc2626"
ABOVE_MM, BELOW_MM, MOST_ABOVE_MM = 0.6, 1.2, 20.0
MIN_HALF_WIDTH_MM = 1.0
ASCAN_X, MMODE_X, SENSOR_WIDTH = (44, 134), (142, 400), 520
SIDES_X, PATH_WIDTH = ((44, 210), (224, 390)), 400


class DepthAxis:
    """From mm below the surface to a drawing's height."""

    def __init__(self, scene: Scene) -> None:
        layers = [*scene.layers_mm.values(), 0.0]
        self.top_mm = max(float(scene.tip_mm[:, 2].min()), -MOST_ABOVE_MM) - ABOVE_MM
        self.bottom_mm = max(float(scene.tip_mm[:, 2].max()), *layers) + BELOW_MM

    def __call__(self, depth_mm: float | np.ndarray) -> np.ndarray:
        share = (np.asarray(depth_mm) - self.top_mm) / (self.bottom_mm - self.top_mm)
        return TOP + share.clip(0, 1) * (BOTTOM - TOP)


def sensor_svg(film: Film, scene: Scene, axis: DepthAxis) -> str:
    """Draws A-scan and M-mode with the layers and the tip."""
    picture = base64.b64encode(webp(mmode(film, scene, axis.top_mm, axis.bottom_mm))).decode()
    left, right = MMODE_X
    seconds = film.rollout.time_s - film.rollout.time_s[0]
    x = _columns(len(seconds))
    parts = [
        _title(ASCAN_X[0], "A-scan"),
        _title(left, "A-scans over time"),
        _frame(*ASCAN_X),
        f'<image x="{left}" y="{TOP}" width="{right - left}" height="{BOTTOM - TOP}" preserveAspectRatio="none" '
        f'href="data:image/webp;base64,{picture}"/>',
        _depth_ticks(axis),
        _layers(scene.layers_mm, axis, ASCAN_X[0], right),
        _layer_names(scene.layers_mm, axis, right + 6),
        '<path class="ascan" d=""/>',
        f'<line class="cursor" x1="{x[-1]:.1f}" x2="{x[-1]:.1f}" y1="{TOP}" y2="{BOTTOM}"/>',
        _moving(x, axis(scene.tip_mm[:, 2])),
        _ticks_below(left, right, float(seconds[-1]), "s"),
        f'<text x="{ASCAN_X[0]}" y="{HEIGHT - 6}">faint to bright</text>',
    ]
    return _svg(SENSOR_WIDTH, "A-scan and A-scans over time, with the layers and the tip", parts)


def path_svg(rollout: Rollout, scene: Scene, axis: DepthAxis) -> str:
    """Draws the path of the tip from two sides, with the layers."""
    half = max(MIN_HALF_WIDTH_MM, float(np.abs(scene.tip_mm[:, :2]).max()) * 1.05)
    parts = [_depth_ticks(axis)]
    for dim, (left, right) in enumerate(SIDES_X):
        centre = (left + right) / 2
        x = centre + scene.tip_mm[:, dim] / half * (right - left) / 2
        parts += [
            _title(left, f"path, {'xy'[dim]} and depth"),
            _frame(left, right),
            _layers(scene.layers_mm, axis, left, right),
            f'<line class="goal" x1="{centre}" x2="{centre}" y1="{TOP}" y2="{BOTTOM}"/>',
            _moving(x, axis(scene.tip_mm[:, 2])),
            f'<text x="{left}" y="{BOTTOM + 15}">{-half:.1f}</text>',
            f'<text x="{right}" y="{BOTTOM + 15}" text-anchor="end">{half:.1f} mm</text>',
            f'<text x="{centre}" y="{HEIGHT - 6}" text-anchor="middle">sideways from the goal</text>',
        ]
    return _svg(PATH_WIDTH, "Path of the tip from two sides, with the layers", parts)


def _columns(num_ticks: int) -> np.ndarray:
    """Returns the middle of each tick's column in the M-mode."""
    left, right = MMODE_X
    return left + (np.arange(num_ticks) + 0.5) / num_ticks * (right - left)


def _svg(width: int, label: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    shape = ' class="wide"' if width == SENSOR_WIDTH else ""
    return (
        f'<svg{shape} viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{html.escape(label)}" '
        f'font-size="{LETTERS}">\n{body}\n</svg>'
    )


def _title(x: float, text: str) -> str:
    return f'<text x="{x}" y="14" class="name">{html.escape(text)}</text>'


def _frame(left: float, right: float) -> str:
    return f'<rect class="frame" x="{left}" y="{TOP}" width="{right - left}" height="{BOTTOM - TOP}"/>'


def _moving(x: np.ndarray, y: np.ndarray) -> str:
    """Draws the path, the part of it that is behind the tip, and the tip."""
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return (
        f'<g class="moving"><polyline class="path" points="{points}"/><polyline class="trail" points="{points}"/>'
        f'<circle class="tip" r="4" cx="{x[-1]:.1f}" cy="{y[-1]:.1f}"/></g>'
    )


def _depth_ticks(axis: DepthAxis) -> str:
    step = 2 if axis.bottom_mm - axis.top_mm <= 24 else 5
    depths = np.arange(np.ceil(axis.top_mm / step), np.floor(axis.bottom_mm / step) + 1) * step
    texts = [
        f'<text x="{ASCAN_X[0] - 6}" y="{axis(depth) + 4:.1f}" text-anchor="end">{depth:g}</text>'
        for depth in depths
    ]
    # Its unit stands where no number can be.
    return "".join([*texts, '<text x="2" y="14">mm</text>'])


def _ticks_below(left: float, right: float, last: float, unit: str) -> str:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 10**9) if last / step <= 7)
    values = np.arange(0, last + 1e-9, step)
    return "".join(
        f'<text x="{left + (right - left) * value / max(last, 1e-9):.1f}" y="{BOTTOM + 15}" '
        f'text-anchor="middle">{value:g}{f" {unit}" if value == values[-1] else ""}</text>'
        for value in values
    )


def colour_of(layers_mm: Mapping[str, float]) -> dict[str, str]:
    """Returns the colour of each layer."""
    others = [name for name in layers_mm if name != STOP]
    colours = {name: LAYER_COLOURS[i % len(LAYER_COLOURS)] for i, name in enumerate(others)}
    return {name: colours.get(name, STOP_COLOUR) for name in layers_mm}


def _layers(layers_mm: Mapping[str, float], axis: DepthAxis, left: float, right: float) -> str:
    colours = colour_of(layers_mm)
    return "".join(
        f'<line class="{"stop" if name == STOP else "layer"}" stroke="{colours[name]}" '
        f'x1="{left}" x2="{right}" y1="{axis(depth):.1f}" y2="{axis(depth):.1f}"/>'
        for name, depth in layers_mm.items()
    )


def _layer_names(layers_mm: Mapping[str, float], axis: DepthAxis, x: float) -> str:
    """Writes the layers' names beside them, none over another."""
    colours, lowest, texts = colour_of(layers_mm), -np.inf, []
    for name, depth in sorted(layers_mm.items(), key=lambda layer: layer[1]):
        lowest = max(float(axis(depth)), lowest + LETTERS + 2)
        texts.append(
            f'<text x="{x}" y="{lowest + 4:.1f}" style="fill:{colours[name]}">{html.escape(name)}</text>'
        )
    return "".join(texts)
