"""The evaluation report: one HTML page that needs nothing else, figures included."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vla_jax.evaluation.metrics import ACTION_UNITS, GRIPPER
from vla_jax.evaluation.report_style import STYLE

NOT_DEFINED = "–"
ROWS = ("policy", "zero", "mean", "previous")
SENTENCES = {
    "zero": "the arm stands still",
    "mean": "mean action of the training episodes",
    "previous": "the last recorded action, repeated; it sees the arm's motion",
}


@dataclass(frozen=True)
class ReportFigure:
    """A picture of the report. caption: what is to be seen; alt: the same for who cannot see it."""

    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Cell:
    """A table cell with a style: "good", "bad", "strong" or "text"."""

    text: str
    style: str = ""


def report_html(metrics: Mapping[str, Any], figures: Sequence[ReportFigure]) -> str:
    """Builds the page from the content of `metrics.json` and the figures."""
    policy, data = metrics["policy"], metrics["data"]
    title = f"{policy['model_type']} policy, fusion {policy['fusion']}, step {policy['step']}"
    episodes = f"{data['episodes']} episode{'s' if data['episodes'] != 1 else ''}"
    lead = (
        f"Judged on {data['samples']} samples of {episodes}, split “{data['split']}”, "
        f"in mm and degrees per control tick ({number(data.get('action_hz'))} Hz)."
    )
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p class=lead>{html.escape(lead)}</p>",
        _cards(metrics),
        _section("Policy and baselines", _headline_table(metrics), _baseline_note(metrics)),
    ]
    if metrics["segments"]:
        parts.append(_section("Segments of the episodes", _segment_table(metrics), _segment_note()))
    parts += [_figure(figure) for figure in figures]
    parts += [
        _section("Dimensions", _dimension_table(metrics), _dimension_note()),
        _section("With and without sensor", _subset_table(metrics)),
        _section("Latency", _latency_table(metrics["latency"]), _latency_note()),
        _section("Provenance", _provenance_tables(metrics)),
    ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def number(value: float | int | None, digits: int = 3) -> str:
    """Returns a value as a person reads it: significant digits, a dash where it is not defined."""
    if value is None:
        return NOT_DEFINED
    if isinstance(value, int):
        return str(value)
    if value != 0 and (abs(value) < 1e-4 or abs(value) >= 1e5):
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text else text


def factor(value: float | None) -> Cell:
    """Returns how many times larger the baseline's error is: green where the policy is better."""
    if value is None:
        return Cell(NOT_DEFINED)
    return Cell(f"{number(value)}×", "good" if value > 1 else "bad")


def table(header: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> str:
    """Returns an HTML table; the first column names the row. Everything is escaped."""

    def cell(value: str | Cell, tag: str) -> str:
        value = value if isinstance(value, Cell) else Cell(value)
        style = f' class="{value.style}"' if value.style else ""
        return f"<{tag}{style}>{html.escape(value.text)}</{tag}>"

    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "\n".join(
        "<tr>" + cell(row[0], "th") + "".join(cell(value, "td") for value in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _cards(metrics: Mapping[str, Any]) -> str:
    factors = metrics["factors"]
    cards = [
        ("overall MSE", number(metrics["overall_mse"]), "all seven dimensions, whole horizon"),
        ("better than zero", factor(factors["zero"]["overall_mse"]).text, _by_motion(factors["zero"])),
        ("better than mean", factor(factors["mean"]["overall_mse"]).text, _by_motion(factors["mean"])),
        ("final drift", f"{number(metrics['drift']['final_mm'])} mm", "open loop, mean of episodes"),
        ("latency", f"{number(metrics['latency']['p50_ms'])} ms", "median, one observation"),
    ]
    return '<div class="cards">' + "".join(
        f'<div class="card"><span>{html.escape(name)}</span><b>{html.escape(value)}</b>'
        f"<small>{html.escape(note)}</small></div>"
        for name, value, note in cards
    ) + "</div>"  # fmt: skip


def _by_motion(factors: Mapping[str, float | None]) -> str:
    return f"by overall MSE; {factor(factors['motion_mse']).text} by motion MSE"


def _headline_table(metrics: Mapping[str, Any]) -> str:
    header = (
        "",
        "overall MSE",
        "factor",
        "motion MSE",
        "factor",
        "overall MAE",
        "first action MSE",
        "final drift [mm]",
        "final drift [deg]",
    )
    rows = []
    for name in ROWS:
        entry = metrics if name == "policy" else metrics["baselines"][name]
        factors = metrics["factors"].get(name, {})
        rows.append(
            [
                name,
                Cell(number(entry["overall_mse"]), "strong"),
                factor(factors.get("overall_mse")),
                Cell(number(entry["motion_mse"]), "strong"),
                factor(factors.get("motion_mse")),
                number(entry["overall_mae"]),
                number(entry["first_action_mse"]),
                number(entry["drift"]["final_mm"]),
                number(entry["drift"]["final_deg"]),
            ]
        )
    return table(header, rows)


def _baseline_note(metrics: Mapping[str, Any]) -> str:
    note = "; ".join(f"{name}: {sentence}" for name, sentence in SENTENCES.items())
    note += ". Factor: the baseline's error over the policy's. Motion: without the gripper"
    if metrics["r2_per_dim"][GRIPPER] is None:
        note += ", which never moves here; standing at 1, it alone costs the zero baseline 1/7 of overall MSE"
    return f"{note}."


def _segment_table(metrics: Mapping[str, Any]) -> str:
    header = ("segment", "samples", "motion MSE", "zero", "mean", "previous", "R² dx", "R² dy", "R² dz",
              "dz MSE", "dz MSE with sensor")  # fmt: skip
    rows = []
    for name, parts in metrics["segments"].items():
        every, sensor = parts["all"], parts["with_sensor"]
        baselines = (metrics["baselines"][b]["segments"][name]["all"]["motion_mse"] for b in ROWS[1:])
        rows.append(
            [
                name,
                number(every["samples"]),
                Cell(number(every["motion_mse"]), "strong"),
                *(number(value) for value in baselines),
                *(number(value) for value in every["r2_per_dim"][:3]),
                number(every["mse_per_dim"][2]),
                number(sensor["mse_per_dim"][2]),
            ]
        )
    return table(header, rows)


def _segment_note() -> str:
    return (
        "Stretches named in the recording; they may overlap. R² is over the whole horizon and against the "
        "segment's own mean, so a segment in which little happens is a hard one."
    )


def _dimension_table(metrics: Mapping[str, Any]) -> str:
    header = (
        "dimension",
        "unit",
        "MSE",
        "MAE",
        "RMSE",
        "R²",
        "R², first action",
        "correlation, first action",
    )
    rows = [
        [
            name,
            ACTION_UNITS[dim] or NOT_DEFINED,
            number(metrics["mse_per_dim"][dim]),
            number(metrics["mae_per_dim"][dim]),
            number(metrics["mse_per_dim"][dim] ** 0.5),
            number(metrics["r2_per_dim"][dim]),
            number(metrics["first_r2_per_dim"][dim]),
            number(metrics["correlations"][dim]),
        ]
        for dim, name in enumerate(metrics["action_names"])
    ]
    return table(header, rows)


def _dimension_note() -> str:
    return "A dash: not defined, because the dimension does not change."


def _subset_table(metrics: Mapping[str, Any]) -> str:
    header = ("", "samples", "overall MSE", "motion MSE", "overall MAE", "zero, motion MSE", "mean, motion MSE",
              "previous, motion MSE")  # fmt: skip
    rows = []
    for name, label in (("with_sensor", "with sensor"), ("without_sensor", "without sensor")):
        entry = metrics["subsets"][name]
        baselines = (metrics["baselines"][b]["subsets"][name]["motion_mse"] for b in ROWS[1:])
        values = (entry["overall_mse"], entry["motion_mse"], entry["overall_mae"], *baselines)
        rows.append([label, number(entry["samples"]), *(number(value) for value in values)])
    return table(header, rows)


def _latency_table(latency: Mapping[str, Any]) -> str:
    header = ("device", "batch", "p50 [ms]", "p90 [ms]", "p99 [ms]", "mean [ms]", "calls", "compilation [ms]")
    keys = ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "calls", "compile_ms")
    return table(
        header, [[latency["device"], number(latency["batch_size"]), *(number(latency[key]) for key in keys)]]
    )


def _latency_note() -> str:
    return "From features and sensor window in host memory to actions in host memory, warm; the backbone not included."


def _provenance_tables(metrics: Mapping[str, Any]) -> str:
    parts = []
    for group in ("policy", "data", "features", "versions"):
        rows = [[str(name), Cell(_plain(value), "text")] for name, value in metrics[group].items()]
        parts.append(f"<h3>{group}</h3>\n{table(('', ''), rows)}")
    return "\n".join(parts)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return NOT_DEFINED if value is None else str(value)


def _section(title: str, content: str, note: str = "") -> str:
    note = f"\n<p class=note>{html.escape(note)}</p>" if note else ""
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{content}{note}\n</section>"


def _figure(figure: ReportFigure) -> str:
    encoded = base64.b64encode(figure.png).decode()
    title, caption = html.escape(figure.title), html.escape(figure.caption)
    return (
        f'<section>\n<h2>{title}</h2>\n<figure><img alt="{title}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{caption}</figcaption></figure>\n</section>"
    )
