"""Several training runs side by side: what they reached, how fast, their curves, and where they differ."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_jax.contracts.metric_names import BEST_METRIC, LIVE_VALIDATION, LOSS, VALIDATION, WAITING
from vla_jax.reporting.drawing import BLUE, GREEN, GREY, ORANGE, Drawing, drawn, new_figure
from vla_jax.reporting.page import NOT_DEFINED, Cell, ReportFigure, figure, number, page, section, table
from vla_jax.training.history import RunHistory, validation_names

COLOURS = (BLUE, ORANGE, GREEN, "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#65a30d", GREY)
LINES = ("-", "--", ":", "-.")
MARKED_POINTS = 40


@dataclass(frozen=True)
class Row:
    """One run's figures. best_error: its smallest held-out action error and best_step where; reached: the first
    step at which that error was not above the given limit; seconds: of all updates."""

    name: str
    steps: int
    planned_steps: int
    last_loss: float | None
    best_loss: float | None
    last_error: float | None
    best_error: float | None
    best_step: int | None
    reached: int | None
    seconds: float | None
    steps_per_second: float | None
    waiting: float | None


def compare(histories: Sequence[RunHistory], limit: float | None = None) -> list[Row]:
    """Returns a row per run. limit: held-out action error (mean square, in the actions' units) to reach."""
    rows = []
    for name, history in zip(run_names(histories), histories, strict=True):
        loss, error = history.curves.get(LOSS), history.curves.get(BEST_METRIC)
        waiting = history.curves.get(WAITING)
        best_loss = loss.best() if loss else None
        best_error = error.best() if error else None
        rows.append(
            Row(
                name=name,
                steps=history.steps,
                planned_steps=history.planned_steps,
                last_loss=loss.last() if loss else None,
                best_loss=best_loss[1] if best_loss else None,
                last_error=error.last() if error else None,
                best_error=best_error[1] if best_error else None,
                best_step=best_error[0] if best_error else None,
                reached=error.first_at_most(limit) if error and limit is not None else None,
                seconds=history.seconds(),
                steps_per_second=history.steps_per_second(),
                waiting=float(np.nanmean(waiting.values)) if waiting else None,
            )
        )
    return rows


def cells(row: Row, limit: float | None) -> dict[str, str]:
    """Returns a row as text under its columns' titles."""
    shown = {
        "updates": f"{row.steps} of {row.planned_steps}",
        "loss": number(row.last_loss),
        "lowest": number(row.best_loss),
        "held-out MSE": number(row.last_error),
        "lowest held-out": number(row.best_error),
        "at update": number(row.best_step),
    }
    if limit is not None:
        shown[f"≤ {number(limit)} at"] = number(row.reached)
    return shown | {
        "minutes": NOT_DEFINED if row.seconds is None else number(row.seconds / 60),
        "updates/s": number(row.steps_per_second),
        "data wait": NOT_DEFINED if row.waiting is None else f"{100 * row.waiting:.1f} %",
    }


NOTE = (
    "Held-out MSE: of sampled actions, all dimensions and the whole horizon, in the actions' units, by the weights "
    "that evaluation uses. Losses of different model types or weights are not comparable. Minutes: all updates, "
    "without validation, saving and compilation. Data wait: share of the updates' time."
)


def differences(histories: Sequence[RunHistory]) -> dict[str, list[Any]]:
    """Returns the settings that are not the same in all runs: name → value of each, None where it has none."""
    names = sorted({name for history in histories for name in history.settings})
    values = {name: [history.settings.get(name) for history in histories] for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found[1:])}


def run_names(histories: Sequence[RunHistory]) -> list[str]:
    """Returns the shortest names that tell the runs apart: the ends of their paths."""
    paths = [os.path.abspath(history.path).split(os.sep) for history in histories]
    depth = 1
    while len({tuple(path[-depth:]) for path in paths}) < len({tuple(path) for path in paths}):
        depth += 1
    return ["/".join(path[-depth:]) for path in paths]


def comparison_html(
    histories: Sequence[RunHistory],
    rows: Sequence[Row],
    limit: float | None,
    figures: Sequence[ReportFigure] | None = None,
) -> str:
    """Builds the report: table, curves and differing settings. figures: of `curve_figures`, drawn already."""
    shown = [cells(row, limit) for row in rows]
    summary = table(
        ("", *shown[0]),
        [[row.name, *values.values()] for row, values in zip(rows, shown, strict=True)],
    )
    parts = [section("Runs", summary, NOTE)]
    parts += [figure(entry) for entry in figures or curve_figures(histories, limit)]
    changed = differences(histories)
    if len(histories) > 1:
        content = (
            table(
                ("setting", *(row.name for row in rows)),
                [[name, *(Cell(text(value)) for value in values)] for name, values in changed.items()],
            )
            if changed
            else "<p>None.</p>"
        )
        parts.append(section("Settings that differ", content, "A dash: the run has no such setting."))
    title = f"{len(histories)} training run{'s' if len(histories) != 1 else ''}"
    return page(title, ", ".join(row.name for row in rows), parts)


_WEIGHTS = {
    VALIDATION: "the averaged weights, which evaluation uses",
    LIVE_VALIDATION: "the weights as trained",
}
_ERRORS = {
    "action_mse": "Mean squared error of sampled actions on held-out episodes, all dimensions and the whole horizon, "
    "in mm² and degrees², of {}.",
    "action_mae": "Mean absolute error of sampled actions on held-out episodes, in mm and degrees, of {}.",
    "loss": "The training loss on held-out episodes, of {}; not comparable between kinds of heads.",
}
CAPTIONS = {
    LOSS: "Training loss, mean of the updates since the last log line; not comparable between kinds of heads."
}
CAPTIONS |= {
    f"{group}/{name}": text.format(weights)
    for group, weights in _WEIGHTS.items()
    for name, text in _ERRORS.items()
}
"""What a curve shows, under its metric's name."""


def curve_figures(histories: Sequence[RunHistory], limit: float | None = None) -> list[ReportFigure]:
    """Draws the training loss and every held-out metric that a run has, all runs in one picture each."""
    captions = CAPTIONS
    if limit is not None:
        captions = captions | {
            BEST_METRIC: f"{captions[BEST_METRIC]} Dotted: the error to reach, {number(limit)}."
        }
    limits = {BEST_METRIC: limit}
    return [
        ReportFigure(name, captions.get(name, ""), _curves(name, histories, limits.get(name)))
        for name in (LOSS, *validation_names(list(histories)))
        if any(name in history.curves for history in histories)
    ]


def text(value: Any) -> str:
    """Returns a setting's value as it stands in the configuration."""
    return NOT_DEFINED if value is None else str(value)


def _curves(name: str, histories: Sequence[RunHistory], limit: float | None) -> Drawing:
    drawing = new_figure(3.6)
    axis = drawing.subplots()
    positive = True
    for index, (label, history) in enumerate(zip(run_names(histories), histories, strict=True)):
        curve = history.curves.get(name)
        if curve is None:
            continue
        axis.plot(
            curve.steps,
            curve.values,
            color=COLOURS[index % len(COLOURS)],
            linestyle=LINES[index // len(COLOURS) % len(LINES)],
            marker="o" if len(curve.steps) <= MARKED_POINTS else None,
            markersize=3,
            linewidth=1.4,
            label=label,
        )
        positive &= bool(np.all(curve.values[np.isfinite(curve.values)] > 0))
    if limit is not None:
        axis.axhline(limit, color=GREY, linestyle=":", linewidth=1.2)
    if positive:
        axis.set_yscale("log")
    axis.set_xlabel("updates")
    axis.set_ylabel(name)
    axis.tick_params(which="minor", labelsize=9)
    drawing.legend(loc="outside right upper", frameon=False, fontsize=9)
    return drawn(drawing)


def as_json(histories: Sequence[RunHistory], rows: Sequence[Row]) -> dict[str, Any]:
    """Returns rows, curves and differing settings as JSON values; null where a value is not finite."""

    def finite(values: np.ndarray) -> list[float | None]:
        return [float(value) if np.isfinite(value) else None for value in values]

    def curves(history: RunHistory) -> Mapping[str, Any]:
        return {
            name: {"step": curve.steps.tolist(), "value": finite(curve.values)}
            for name, curve in history.curves.items()
        }

    return {
        "runs": [
            {**vars(row), "path": str(history.path), "curves": curves(history)}
            for row, history in zip(rows, histories, strict=True)
        ],
        "differences": differences(histories),
    }
