"""The figures of a live run, as PNG bytes."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from vla_jax.contracts.specs import LAB_ACTIONS
from vla_jax.reporting.drawing import BLUE, GREY, ORANGE, new_figure, png
from vla_jax.reporting.live_record import LiveRecord
from vla_jax.reporting.rollout_plots import COLOURS, RED

MAX_POINTS = 600
"""Of a line; of longer runs the largest of each stretch is drawn."""
LATENCIES = {
    "sensor_encoding_time": "putting the observation together",
    "action_prediction_time": "prediction",
    "total_time": "tick, from waking to the command",
    "sensor_to_command_ms": "newest sensor row to the command",
}


def jitter_figure(record: LiveRecord) -> bytes:
    """Draws how late ticks were: over time, with missed ones, and how often how much."""
    figure = new_figure(3.0)
    over_time, counts = figure.subplots(1, 2, width_ratios=(2, 1))
    late = record.timings["late_ms"]
    over_time.plot(*largest_of_stretches(record.time_s, late), color=BLUE, linewidth=1)
    missed = np.flatnonzero(record.missed)
    if len(missed):
        for moment in record.time_s[missed]:
            over_time.axvline(moment, color=RED, linewidth=0.8, alpha=0.6)
    over_time.set(xlabel="time [s]", ylabel="late [ms]", ylim=(0, None))
    finite = late[np.isfinite(late)]
    if len(finite):
        counts.hist(finite, bins=40, color=BLUE, log=True)
    counts.set(xlabel="late [ms]", ylabel="ticks")
    return png(figure)


def ages_figure(record: LiveRecord) -> bytes:
    """Draws how old the newest of each stream was at the ticks."""
    figure = new_figure(3.4)
    axis = figure.subplots()
    for index, (name, ages) in enumerate(record.ages_ms.items()):
        colour = COLOURS[index % len(COLOURS)]
        axis.plot(*largest_of_stretches(record.time_s, ages), color=colour, linewidth=1, label=name)
    axis.set(xlabel="time [s]", ylabel="age [ms]", ylim=(0, None))
    if record.ages_ms:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return png(figure)


def latency_figure(record: LiveRecord) -> bytes:
    """Draws in which share of the ticks each part took at most so long."""
    figure = new_figure(3.2)
    axis = figure.subplots()
    for index, (name, label) in enumerate(LATENCIES.items()):
        values = np.sort(record.timings[name][np.isfinite(record.timings[name])])
        if len(values):
            share = np.arange(1, len(values) + 1) / len(values)
            axis.step(np.maximum(values, 1e-2), share, where="post", color=COLOURS[index], label=label)
    axis.set_xscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axis.set(xlabel="ms", ylabel="share of ticks", ylim=(0, 1.02))
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return png(figure)


def actions_figure(record: LiveRecord) -> bytes:
    """Draws each number of the actions, as the policy gave it and as it was sent; shaded where somebody intervened."""
    dims = [dim for dim in range(record.action.shape[1]) if np.ptp(_known(record, dim))]
    figure = new_figure(0.8 + 1.1 * max(len(dims), 1))
    axes = figure.subplots(max(len(dims), 1), 1, sharex=True, squeeze=False)[:, 0]
    for axis, dim in zip(axes, dims, strict=False):
        axis.plot(*largest_of_stretches(record.time_s, record.raw_action[:, dim]), color=GREY, linewidth=1)
        axis.plot(*largest_of_stretches(record.time_s, record.action[:, dim]), color=BLUE, linewidth=1)
        axis.set_ylabel(_action_name(dim, record.action.shape[1]))
        _shade(axis, record)
    axes[-1].set_xlabel("time [s]")
    return png(figure)


def largest_of_stretches(
    time_s: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Returns at most `MAX_POINTS` points: of each stretch of the run the one that is farthest from zero."""
    if len(values) <= MAX_POINTS:
        return time_s, values
    moments, largest = [], []
    for rows in np.array_split(np.arange(len(values)), MAX_POINTS):
        size = np.nan_to_num(np.abs(values[rows]), nan=-1.0)
        row = rows[int(size.argmax())]
        moments.append(time_s[row])
        largest.append(values[row])
    return np.array(moments), np.array(largest)


def stretches(moments: Sequence[bool]) -> list[tuple[int, int]]:
    """Returns (first, last) of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(moments, np.int8), [0]])))
    return [(int(first), int(stop) - 1) for first, stop in edges.reshape(-1, 2)]


def _shade(axis: Axes, record: LiveRecord) -> None:
    tick_s = float(np.median(np.diff(record.time_s))) if record.num_ticks > 1 else 0.1
    for first, last in stretches([kind is not None for kind in record.intervention]):
        axis.axvspan(
            record.time_s[first], record.time_s[last] + tick_s, color=ORANGE, alpha=0.25, linewidth=0
        )


def _known(record: LiveRecord, dim: int) -> np.ndarray:
    values = np.concatenate([record.action[:, dim], record.raw_action[:, dim]])
    known = values[np.isfinite(values)]
    return known if len(known) else np.zeros(1)


def _action_name(dim: int, size: int) -> str:
    if size != LAB_ACTIONS.size:
        return f"action {dim + 1}"
    unit = LAB_ACTIONS.units[dim]
    return f"{LAB_ACTIONS.names[dim]} [{unit}]" if unit else LAB_ACTIONS.names[dim]
