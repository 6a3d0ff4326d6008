"""The report's figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vla_jax.contracts.specs import ActionSpec
from vla_jax.evaluation.drift import Drift
from vla_jax.reporting.drawing import BLUE, DARK, GREEN, GREY, ORANGE, Drawing, drawn, new_figure

RECORDED, POLICY = DARK, BLUE
BASELINES = {"zero": GREY, "mean": ORANGE, "previous": GREEN}
SEGMENTS = ("#93c5fd", "#fcd34d", "#c4b5fd", "#f87171", "#86efac", "#fdba74", "#67e8f9", "#d4d4d8")
SHADE = 0.4
BAND = 0.09  # share of the height; segments that overlap others are bands at the top
MAX_SCATTER_POINTS = 4000
MAX_DRIFT_LINES = 60


@dataclass(frozen=True)
class Trace:
    """First actions of one episode's samples, predicted and recorded.

    Attributes:
        title: shown above the column.
        time: [m] seconds since the first sample.
        predicted, recorded: [m, a] mm and degrees per tick.
        segments: (name, start, end) in the same seconds.
    """

    title: str
    time: Float[np.ndarray, " m"]
    predicted: Float[np.ndarray, "m a"]
    recorded: Float[np.ndarray, "m a"]
    segments: tuple[tuple[str, float, float], ...] = ()


def trace_figure(traces: Sequence[Trace], actions: ActionSpec) -> Drawing:
    """Draws the first three dimensions of predicted and recorded first actions over time: a row per dimension, a
    column per episode."""
    dims = range(min(3, actions.size))
    figure = new_figure(1.5 * len(dims) + 0.9)
    axes = figure.subplots(len(dims), len(traces), sharex="col", sharey="row", squeeze=False)
    names = list(dict.fromkeys(name for trace in traces for name, _, _ in trace.segments))
    colours = {name: SEGMENTS[i % len(SEGMENTS)] for i, name in enumerate(names)}
    for column, trace in enumerate(traces):
        axes[0, column].set_title(trace.title, fontsize=9, loc="left")
        for row, dim in enumerate(dims):
            axis = axes[row, column]
            for name, start, end, is_nested in sorted(_layered(trace.segments), key=lambda entry: entry[-1]):
                bottom = 1.0 - BAND if is_nested else 0.0
                if is_nested:  # its colour would mix with that of the segment below
                    axis.axvspan(start, end, bottom, color="#ffffff", linewidth=0)
                axis.axvspan(start, end, bottom, color=colours[name], alpha=SHADE, linewidth=0)
            axis.plot(trace.time, trace.recorded[:, dim], color=RECORDED, linewidth=1.1)
            axis.plot(trace.time, trace.predicted[:, dim], color=POLICY, linewidth=1.3)
            if len(trace.time) > 1:
                axis.set_xlim(trace.time[0], trace.time[-1])
            if column == 0:
                axis.set_ylabel(_label(actions, dim))
        axes[-1, column].set_xlabel("time [s]")
    handles = [
        Line2D([], [], color=RECORDED, label="recorded"),
        Line2D([], [], color=POLICY, label="predicted"),
        *(Patch(color=colours[name], alpha=SHADE, linewidth=0, label=name) for name in names),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)
    return drawn(figure)


def horizon_figure(per_horizon: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Drawing:
    """Draws the error at each step of the horizon, for the policy and the baselines.

    per_horizon: name → metrics with translation_rmse_per_horizon and rotation_rmse_per_horizon; where neither is
    defined, with mse_per_horizon.
    """
    figure = new_figure(3.1)
    wanted = {"translation_rmse_per_horizon": "mm", "rotation_rmse_per_horizon": "deg"}
    shown = {
        key: unit for key, unit in wanted.items() if any(v is not None for v in per_horizon["policy"][key])
    }
    shown = shown or {"mse_per_horizon": "own units"}
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, (key, unit) in zip(axes, shown.items(), strict=True):
        for name, metrics in per_horizon.items():
            values = np.array([np.nan if value is None else value for value in metrics[key]])
            values = np.sqrt(values) if key == "mse_per_horizon" else values
            axis.plot(
                np.arange(1, len(values) + 1),
                values,
                marker="o",
                markersize=3.5,
                linewidth=2.0 if name == "policy" else 1.2,
                color=BASELINES.get(name, POLICY),
                label=name,
            )
        axis.set_ylim(bottom=0)
        axis.set_xlabel("step of the horizon")
        axis.set_ylabel(f"{key.split('_')[0].replace('mse', 'action')} error, RMS [{unit}]")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)
    return drawn(figure)


def age_figure(by_age: Sequence[Mapping[str, float | None]], actions: ActionSpec) -> Drawing:
    """Draws the errors against the age of the features.

    by_age: as `vla_jax.evaluation.errors_by_age` returns them, at least one.
    """
    figure = new_figure(3.1)
    ages = [entry["feature_age_s"] for entry in by_age]
    wanted = {"translation_mse": ("position", "mm"), "rotation_mse": ("angle", "deg")}
    shown = {key: named for key, named in wanted.items() if by_age[0][key] is not None}
    shown = shown or {"overall_mse": ("action", "own units")}
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, (key, (name, unit)) in zip(axes, shown.items(), strict=True):
        squared = np.array([entry[key] for entry in by_age], np.float64) * max(1, len(actions.dims(unit)))
        axis.plot(ages, np.sqrt(squared), marker="o", markersize=3.5, linewidth=2.0, color=POLICY)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("age of the features [s]")
        axis.set_ylabel(f"{name} error, RMS [{unit}]")
    return drawn(figure)


def drift_figure(drifts: Sequence[Drift], action_hz: float) -> Drawing:
    """Draws the open-loop drift of every stretch over time, and their mean where all of them last."""
    figure = new_figure(3.1)
    shortest = min(drift.ticks for drift in drifts)
    for axis, name, unit in zip(figure.subplots(1, 2), ("position", "angle"), ("mm", "deg"), strict=True):
        curves = [getattr(drift, name) for drift in drifts]
        axis.set_xlabel("time executed [s]")
        axis.set_ylabel(f"{name} drift [{unit}]")
        if curves[0] is None:
            continue
        for curve in curves[:MAX_DRIFT_LINES]:
            axis.plot(_seconds(len(curve), action_hz), curve, color=POLICY, alpha=0.3, linewidth=0.9)
        mean = np.mean([curve[:shortest] for curve in curves], axis=0)
        axis.plot(_seconds(shortest, action_hz), mean, color=RECORDED, linewidth=2.0)
        axis.set_ylim(bottom=0)
    handles = [
        Line2D([], [], color=POLICY, alpha=0.5, label="one episode"),
        Line2D([], [], color=RECORDED, linewidth=2.0, label="mean, while all episodes last"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return drawn(figure)


def scatter_figure(
    predicted: Float[np.ndarray, "n h a"],
    target: Float[np.ndarray, "n h a"],
    r2: Sequence[float | None],
    actions: ActionSpec,
) -> Drawing:
    """Draws predicted against recorded values, whole horizon, of the dimensions in mm and degrees, or of all where
    there are none."""
    dims = sorted(actions.dims("mm") + actions.dims("deg")) or list(range(actions.size))
    rows_of_axes = -(-len(dims) // 3)
    figure = new_figure(2.9 * rows_of_axes)
    flat_predicted, flat_target = (values.reshape(-1, values.shape[-1]) for values in (predicted, target))
    rows = np.arange(len(flat_target))
    if len(rows) > MAX_SCATTER_POINTS:
        rows = np.random.default_rng(0).choice(rows, MAX_SCATTER_POINTS, replace=False)
    axes = list(figure.subplots(rows_of_axes, min(3, len(dims)), squeeze=False).flat)
    for axis in axes[len(dims) :]:
        axis.set_axis_off()
    for dim, axis in zip(dims, axes, strict=False):
        x, y = flat_target[rows, dim], flat_predicted[rows, dim]
        low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
        margin = max(0.05 * (high - low), 1e-3)
        axis.plot([low, high], [low, high], color=GREY, linewidth=1.0)
        axis.scatter(x, y, s=5, color=POLICY, alpha=0.25, linewidths=0, rasterized=True)
        axis.set_xlim(low - margin, high + margin)
        axis.set_ylim(low - margin, high + margin)
        axis.set_aspect("equal")
        axis.locator_params(nbins=5)
        value = r2[dim]
        quality = "not defined: constant" if value is None else "below −1" if value < -1 else f"{value:.2f}"
        axis.set_title(f"{_label(actions, dim)}   R² {quality}", fontsize=9, loc="left")
    figure.supxlabel("recorded", fontsize=10)
    figure.supylabel("predicted", fontsize=10)
    return drawn(figure)


def _layered(
    segments: Sequence[tuple[str, float, float]],
) -> list[tuple[str, float, float, bool]]:
    """Marks the segments that overlap one before them by more than half of the shorter one."""
    layered: list[tuple[str, float, float, bool]] = []
    for name, start, end in segments:
        is_nested = any(
            min(end, other_end) - max(start, other_start) > 0.5 * min(end - start, other_end - other_start)
            for _, other_start, other_end, other_is_nested in layered
            if not other_is_nested
        )
        layered.append((name, start, end, is_nested))
    return layered


def _label(actions: ActionSpec, dim: int) -> str:
    name, unit = actions.names[dim], actions.units[dim]
    return f"{name} [{unit}]" if unit else name


def _seconds(ticks: int, action_hz: float) -> np.ndarray:
    return np.arange(1, ticks + 1) / action_hz
