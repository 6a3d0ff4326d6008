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
        section("Policy and baselines", _headline_table(metrics, actions), _baseline_note(metrics, actions)),
    ]
    if metrics["segments"]:
        parts.append(section("Segments of the episodes", _segment_table(metrics, actions), _segment_note()))
    parts += [figure(entry) for entry in figures]
    if by_age := metrics.get("by_feature_age"):
        parts.append(section("Age of the features", _age_table(by_age, actions), _age_note(metrics)))
    parts += [
        section("Dimensions", _dimension_table(metrics, actions), _dimension_note()),
        section("With and without sensor", _subset_table(metrics)),
        section("Latency", _latency_table(metrics["latency"]), _latency_note()),
        section("Training", _settings_table(metrics), "The run's config.json has them all."),
        section("Provenance", _provenance_tables(metrics)),
    ]
    return page(title, lead, parts)


def factor(value: float | None) -> Cell:
    """Returns how many times larger the baseline's error is: green where the policy is better."""
    if value is None:
        return Cell(NOT_DEFINED)
    return Cell(f"{number(value)}×", "good" if value > 1 else "bad")


def _cards(metrics: Mapping[str, Any], actions: ActionSpec) -> str:
    factors, drift, intervals = metrics["factors"], metrics["drift"], metrics.get("intervals", {})
    entries = []
    for name, unit, key, interval in (
        ("position error", "mm", "translation_mse", "position_rmse"),
        ("angle error", "°", "rotation_mse", "angle_rmse"),
    ):
        length = _length(metrics[key], actions, unit)
        if length is not None:
            note = f"RMS length a tick{_between(intervals.get(interval))}"
            entries.append((name, f"{number(length)} {unit}", note))
    if not entries:
        entries.append(("overall MSE", number(metrics["overall_mse"]), f"all {actions.size} dimensions"))
    for baseline, text in (("mean", "the mean action"), ("zero", "standing still")):
        by_motion = factors[baseline]["motion_mse"]
        shown = factors[baseline]["overall_mse"] if by_motion is None else by_motion
        entries.append(
            (f"better than {text}", factor(shown).text, "by motion MSE" if by_motion else "by overall MSE")
        )
    if drift["final_mm"] is not None:
        angle = "" if drift["final_deg"] is None else f"and {number(drift['final_deg'])}°, "
        entries.append(("final drift", f"{number(drift['final_mm'])} mm", f"{angle}open loop, mean"))
    entries.append(("latency", f"{number(metrics['latency']['p50_ms'])} ms", "median, one observation"))
    return cards(entries)


def _length(mse: float | None, actions: ActionSpec, unit: str) -> float | None:
    """Returns the root mean square length of the error vector of the dimensions that have a unit."""
    dims = actions.dims("deg" if unit == "°" else unit)
    return None if mse is None or not dims else (mse * len(dims)) ** 0.5


def _between(interval: Sequence[float] | None) -> str:
    return (
        ""
        if interval is None
        else f"; 95 % interval over episodes {number(interval[0])} to {number(interval[1])}"
    )


def r2_cell(value: float | None) -> Cell:
    """Returns an R² as it is read: below 0, the prediction is worse than the mean of what it is compared with."""
    if value is None:
        return Cell(NOT_DEFINED)
    return Cell("below −1" if value < -1 else number(value), "bad" if value < 0 else "")


def _headline_table(metrics: Mapping[str, Any], actions: ActionSpec) -> str:
    header = (
        "",
        "position error, RMS [mm]",
        "factor",
        "angle error, RMS [°]",
        "factor",
        "first action, motion MSE",
        "final drift [mm]",
        "final drift [°]",
        "overall MSE",
        "overall MAE",
    )
    rows = []
    for name in ROWS:
        entry = metrics if name == "policy" else metrics["baselines"][name]
        factors = metrics["factors"].get(name, {})
        rows.append(
            [
                name,
                Cell(number(_length(entry["translation_mse"], actions, "mm")), "strong"),
                factor(factors.get("translation_mse")),
                Cell(number(_length(entry["rotation_mse"], actions, "°")), "strong"),
                factor(factors.get("rotation_mse")),
                number(entry["first_motion_mse"]),
                number(entry["drift"]["final_mm"]),
                number(entry["drift"]["final_deg"]),
                number(entry["overall_mse"]),
                number(entry["overall_mae"]),
            ]
        )
    return table(header, rows)


def _baseline_note(metrics: Mapping[str, Any], actions: ActionSpec) -> str:
    note = "; ".join(f"{name}: {sentence}" for name, sentence in SENTENCES.items())
    note += (
        ". Factor: the baseline's mean squared error over the policy's. Errors of position and angle are lengths of "
        "the error vector at each predicted tick, over the whole horizon. Motion: the dimensions in mm and degrees"
    )
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
                *(r2_cell(value) for value in every["r2_per_dim"][:3]),
                number(every["mse_per_dim"][last]),
                number(sensor["mse_per_dim"][last]),
            ]
        )
    return table(header, rows)


def _segment_note() -> str:
    return (
        "Stretches named in the recording; they may overlap. R² is over the whole horizon and against the "
        "segment's own mean, so a segment in which little happens is a hard one: below 0 it is worse than that mean. "
        "MSE in mm² and degrees²."
    )


def _age_table(by_age: Sequence[Mapping[str, Any]], actions: ActionSpec) -> str:
    header = (
        "features [s old]",
        "position error, RMS [mm]",
        "angle error, RMS [°]",
        "motion MSE",
        "overall MSE",
    )
    rows = [
        [
            number(entry["feature_age_s"]),
            Cell(number(_length(entry["translation_mse"], actions, "mm")), "strong"),
            Cell(number(_length(entry["rotation_mse"], actions, "°")), "strong"),
            number(entry["motion_mse"]),
            number(entry["overall_mse"]),
        ]
        for entry in by_age
    ]
    return table(header, rows)


def _age_note(metrics: Mapping[str, Any]) -> str:
    told = "is told" if metrics["policy"].get("told_feature_age") else "is not told"
    samples = metrics["by_feature_age"][0]["samples"]
    return (
        f"The same {samples} samples, with the features of older pictures: what a backbone that takes so long costs. "
        f"The policy {told} how old they are."
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
            r2_cell(metrics["r2_per_dim"][dim]),
            r2_cell(metrics["first_r2_per_dim"][dim]),
            number(metrics["correlations"][dim]),
        ]
        for dim, name in enumerate(metrics["action_names"])
    ]
    return table(header, rows)


def _dimension_note() -> str:
    return "A dash: not defined, because the dimension does not change. R² below 0: worse than the mean."


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


def _settings_table(metrics: Mapping[str, Any]) -> str:
    settings = metrics.get("training") or {"settings": "not known, the policy was imported"}
    return table(
        ("setting", "value"), [[str(name), Cell(_plain(value), "text")] for name, value in settings.items()]
    )


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
