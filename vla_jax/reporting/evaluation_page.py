"""The evaluation report, as an HTML page."""

from collections.abc import Mapping, Sequence
from typing import Any

from vla_jax.contracts.specs import ActionSpec
from vla_jax.reporting.page import (
    NOT_DEFINED,
    Cell,
    ReportFigure,
    cards,
    figure,
    number,
    page,
    section,
    table,
)

ROWS = ("policy", "zero", "mean", "previous")
SENTENCES = {
    "zero": "the arm stands still",
    "mean": "mean action of the training episodes",
    "previous": "the last recorded action, repeated; it sees the arm's motion",
}


def report_html(metrics: Mapping[str, Any], figures: Sequence[ReportFigure], actions: ActionSpec) -> str:
    """Builds the page from the content of `metrics.json` and the figures. actions: what was predicted."""
    policy, data = metrics["policy"], metrics["data"]
    title = f"{policy['model_type']} policy, fusion {policy['fusion']}, step {policy['step']}"
    episodes = f"{data['episodes']} episode{'s' if data['episodes'] != 1 else ''}"
    lead = (
        f"Judged on {data['samples']} samples of {episodes}, split “{data['split']}”, "
        f"in {actions.unit_text} per control tick ({number(data.get('action_hz'))} Hz)."
    )
    parts = [
        _cards(metrics, actions),
        section("Policy and baselines", _headline_table(metrics), _baseline_note(metrics, actions)),
    ]
    if metrics["segments"]:
        parts.append(section("Segments of the episodes", _segment_table(metrics, actions), _segment_note()))
    parts += [figure(entry) for entry in figures]
    parts += [
        section("Dimensions", _dimension_table(metrics, actions), _dimension_note()),
        section("With and without sensor", _subset_table(metrics)),
        section("Latency", _latency_table(metrics["latency"]), _latency_note()),
        section("Provenance", _provenance_tables(metrics)),
    ]
    return page(title, lead, parts)


def factor(value: float | None) -> Cell:
    """Returns how many times larger the baseline's error is: green where the policy is better."""
    if value is None:
        return Cell(NOT_DEFINED)
    return Cell(f"{number(value)}×", "good" if value > 1 else "bad")


def _cards(metrics: Mapping[str, Any], actions: ActionSpec) -> str:
    factors, final_mm = metrics["factors"], metrics["drift"]["final_mm"]
    drift = (
        [("final drift", f"{number(final_mm)} mm", "open loop, mean of episodes")]
        if final_mm is not None
        else []
    )
    return cards(
        [
            ("overall MSE", number(metrics["overall_mse"]), f"all {actions.size} dimensions, whole horizon"),
            ("better than zero", factor(factors["zero"]["overall_mse"]).text, _by_motion(factors["zero"])),
            ("better than mean", factor(factors["mean"]["overall_mse"]).text, _by_motion(factors["mean"])),
            *drift,
            ("latency", f"{number(metrics['latency']['p50_ms'])} ms", "median, one observation"),
        ]
    )


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


def _baseline_note(metrics: Mapping[str, Any], actions: ActionSpec) -> str:
    note = "; ".join(f"{name}: {sentence}" for name, sentence in SENTENCES.items())
    note += ". Factor: the baseline's error over the policy's. Motion: the dimensions in mm and degrees"
    still = [dim for dim, unit in enumerate(actions.units) if not unit and metrics["r2_per_dim"][dim] is None]
    if still:
        names = " and ".join(actions.names[dim] for dim in still)
        note += (
            f", without {names}, whose constant is easy to know and costs the zero baseline 1/{actions.size}"
        )
    return f"{note}."


def _segment_table(metrics: Mapping[str, Any], actions: ActionSpec) -> str:
    shown = actions.names[:3]
    last = len(shown) - 1
    header = ("segment", "samples", "motion MSE", "zero", "mean", "previous", *(f"R² {name}" for name in shown),
              f"{shown[last]} MSE", f"{shown[last]} MSE with sensor")  # fmt: skip
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
                number(every["mse_per_dim"][last]),
                number(sensor["mse_per_dim"][last]),
            ]
        )
    return table(header, rows)


def _segment_note() -> str:
    return (
        "Stretches named in the recording; they may overlap. R² is over the whole horizon and against the "
        "segment's own mean, so a segment in which little happens is a hard one."
    )


def _dimension_table(metrics: Mapping[str, Any], actions: ActionSpec) -> str:
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
            actions.units[dim] or NOT_DEFINED,
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
