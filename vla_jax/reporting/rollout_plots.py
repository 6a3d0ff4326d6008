"""The figures of closed-loop episodes, as PNG bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from vla_jax.contracts.environment import STOP, Scene
from vla_jax.evaluation.closed_loop import Rollout
from vla_jax.evaluation.rollout_summary import Trial
from vla_jax.evaluation.turning_point import turning_point
from vla_jax.reporting.drawing import BLUE, DARK, GREEN, GREY, ORANGE, new_figure, png

COLOURS = (BLUE, ORANGE, GREEN, "#7c3aed", "#0891b2", "#be185d", "#65a30d", GREY)
RED = "#dc2626"
MAX_LINES = 200  # paths in a picture, evenly chosen
SIDES = "xy"
UNITS = {"um": "µm", "mm": "mm", "deg": "°", "n": "N", "s": "s", "ms": "ms", "hz": "Hz"}


def measure_label(name: str) -> str:
    """Returns a measure's name in words, with the unit that its name ends in: `depth_error_um`."""
    words, _, unit = name.rpartition("_")
    if words and unit in UNITS:
        return f"{words.replace('_', ' ')} [{UNITS[unit]}]"
    return name.replace("_", " ")


def latency_figure(runs: Sequence[Mapping[str, Any]]) -> bytes:
    """Draws success against the latency of features: a line for each policy, with intervals.

    runs: summaries (`summarise`).
    """
    figure = new_figure(3.2)
    axis = figure.subplots()
    latencies = sorted({run["feature_latency_s"] for run in runs})
    names = list(dict.fromkeys(run["name"] for run in runs))
    # Intervals of several policies would cover each other.
    aside = 0.012 * (latencies[-1] - latencies[0])
    for index, name in enumerate(names):
        own = sorted((run for run in runs if run["name"] == name), key=lambda run: run["feature_latency_s"])
        x = np.array([run["feature_latency_s"] for run in own]) + aside * (index - (len(names) - 1) / 2)
        rate, error = _rates(own)
        axis.errorbar(x, rate, error, color=_colour(index), marker="o", capsize=3, label=name)
    axis.set_ylim(-0.02, 1.02)
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axis.set_xlabel("age added to features [s]")
    axis.set_ylabel("success")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return png(figure)


def setting_figure(runs: Sequence[Mapping[str, Any]]) -> bytes:
    """Draws success under each setting: a row for each, a point with its interval for each policy."""
    settings = list(dict.fromkeys(run["setting"] for run in runs))
    names = list(dict.fromkeys(run["name"] for run in runs))
    figure = new_figure(0.9 + len(settings) * max(0.3, 0.16 * len(names)))
    axis = figure.subplots()
    for index, name in enumerate(names):
        own = [run for run in runs if run["name"] == name]
        aside = 0.6 * ((index + 0.5) / len(names) - 0.5)
        y = [settings.index(run["setting"]) + aside for run in own]
        rate, error = _rates(own)
        axis.errorbar(rate, y, xerr=error, fmt="o", color=_colour(index), markersize=5, capsize=2, label=name)
    axis.set_yticks(range(len(settings)), settings)
    axis.set_ylim(len(settings) - 0.5, -0.5)
    axis.set_xlim(-0.02, 1.02)
    axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axis.set_xlabel("success")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return png(figure)


def distribution_figure(trials: Sequence[Trial], measure: str) -> bytes:
    """Draws in which share of its episodes each policy's measure is at most so large; where it is not defined, it is
    above all."""
    figure = new_figure(3.2)
    axis = figure.subplots()
    for index, trial in enumerate(trials):
        found = [rollout.outcome.measures.get(measure) for rollout in trial.rollouts]
        defined = np.sort([float(value) for value in found if value is not None])
        share = np.arange(1, len(defined) + 1) / len(found)
        axis.step(np.maximum(defined, 1e-3), share, where="post", color=_colour(index), label=trial.name)
    axis.set_xscale("log")
    axis.set_ylim(0, 1.02)
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axis.tick_params(which="minor", labelsize=7)
    axis.set_xlabel(measure_label(measure))
    axis.set_ylabel("episodes at most")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return png(figure)


def paths_figure(rollouts: Sequence[Rollout]) -> bytes:
    """Draws the paths of the tip in two upright planes, with the layers, and their depth over time from the stop.

    rollouts: with scenes.
    """
    figure = new_figure(3.8)
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    shown = _evenly(rollouts)
    half = max(1.0, *(float(np.abs(scene.tip_mm[:, :2]).max()) for _, scene in shown)) * 1.05
    for dim, axis in enumerate(axes[:2]):
        for rollout, scene in shown:
            axis.plot(scene.tip_mm[:, dim], scene.tip_mm[:, 2], **_line(rollout))
            axis.plot(
                scene.tip_mm[-1, dim], scene.tip_mm[-1, 2], ".", color=_line(rollout)["color"], markersize=4
            )
        _mark_layers(axis, [scene for _, scene in shown], named=dim == 1)
        axis.set_xlim(-half, half)
        axis.invert_yaxis()
        axis.set_xlabel(f"{SIDES[dim]} from the goal [mm]")
    axes[0].set_ylabel("depth below the surface [mm]")
    for rollout, scene in shown:
        axes[2].plot(_seconds(rollout), _from_stop(scene), **_line(rollout))
    axes[2].axhline(0, color=DARK, linewidth=0.8)
    axes[2].invert_yaxis()
    axes[2].set_xlabel("time [s]")
    axes[2].set_ylabel("depth past the stop [mm]")
    handles = [Line2D([], [], color=GREEN, label="success"), Line2D([], [], color=RED, label="failure")]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return png(figure)


def failures_figure(rollouts: Sequence[Rollout]) -> bytes:
    """Draws, for each reason of failure, depth over time and the path from above; a dot where each was nearest to its
    stop. The example (`example_of`) is drawn darker.

    rollouts: with scenes that have a stop, of which some have failed.
    """
    reasons = failure_reasons(rollouts)
    figure = new_figure(1.8 * len(reasons) + 0.4)
    rows = figure.subplots(len(reasons), 2, squeeze=False, width_ratios=(2.2, 1), sharex="col")
    successes = _evenly([rollout for rollout in rollouts if rollout.outcome.success])
    for (reason, failed), (left, right) in zip(reasons.items(), rows, strict=True):
        example = example_of(failed)
        for rollout, scene in successes:
            left.plot(_seconds(rollout), _from_stop(scene), color=GREY, alpha=0.25, linewidth=0.7)
        for rollout, scene in sorted(_evenly(failed), key=lambda entry: entry[0] is example):
            colour, width = (RED, 1.6) if rollout is example else (ORANGE, 0.8)
            turn = turning_point(rollout)
            left.plot(_seconds(rollout), _from_stop(scene), color=colour, linewidth=width)
            right.plot(*scene.tip_mm[:, :2].T, color=colour, linewidth=width)
            if turn is not None:
                left.plot(turn.time_s, _from_stop(scene)[turn.tick], "o", color=colour, markersize=4)
                right.plot(*scene.tip_mm[turn.tick, :2], "o", color=colour, markersize=4)
        left.axhline(0, color=DARK, linewidth=0.8)
        left.invert_yaxis()
        left.set_title(
            f"{reason.replace('_', ' ')}: {len(failed)} of {len(rollouts)}", fontsize=9, loc="left"
        )
        left.set_ylabel("past the stop [mm]")
        right.plot(0, 0, "+", color=DARK, markersize=9)
        right.set_aspect("equal", adjustable="datalim")
        right.set_ylabel("y [mm]")
    rows[-1, 0].set_xlabel("time [s]")
    rows[-1, 1].set_xlabel("x from the goal [mm]")
    return png(figure)


def failure_reasons(rollouts: Sequence[Rollout]) -> dict[str, list[Rollout]]:
    """Returns the failed episodes by their reason, the most frequent one first."""
    by_reason: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        if not rollout.outcome.success:
            by_reason.setdefault(rollout.outcome.failure or "not named", []).append(rollout)
    return dict(sorted(by_reason.items(), key=lambda entry: (-len(entry[1]), entry[0])))


def example_of(failed: Sequence[Rollout]) -> Rollout:
    """Returns the episode in the middle of those that failed for one reason, by how near they came to the stop."""

    def nearest(rollout: Rollout) -> tuple[float, int]:
        turn = turning_point(rollout)
        return (turn.distance_mm if turn else 0.0), rollout.seed

    return sorted(failed, key=nearest)[len(failed) // 2]


def _rates(runs: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns rates [n] and how far their intervals reach below and above [2, n]."""
    rate, low, high = (
        np.array([run["success"][name] for run in runs], np.float64) for name in ("rate", "low", "high")
    )
    return rate, np.stack([rate - low, high - rate]).clip(0)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _evenly(rollouts: Sequence[Rollout]) -> list[tuple[Rollout, Scene]]:
    """Returns at most `MAX_LINES` episodes with their scenes."""
    with_scene = [
        (rollout, rollout.outcome.scene) for rollout in rollouts if rollout.outcome.scene is not None
    ]
    stride = -(-len(with_scene) // MAX_LINES) or 1
    return with_scene[::stride]


def _line(rollout: Rollout) -> dict[str, Any]:
    success = rollout.outcome.success
    return {"color": GREEN if success else RED, "alpha": 0.55 if success else 0.8, "linewidth": 0.9}


def _seconds(rollout: Rollout) -> np.ndarray:
    return rollout.time_s - rollout.time_s[0]


def _from_stop(scene: Scene) -> np.ndarray:
    """Returns the depth past the stop, or below the surface where there is no stop."""
    return scene.tip_mm[:, 2] - scene.layers_mm.get(STOP, 0.0)


def _mark_layers(axis: Axes, scenes: Sequence[Scene], *, named: bool) -> None:
    """Shades where each layer lies in these episodes: a line where it is the same in all."""
    names = dict.fromkeys(name for scene in scenes for name in scene.layers_mm if name != STOP)
    for index, name in enumerate(names):
        depths = [scene.layers_mm[name] for scene in scenes if name in scene.layers_mm]
        low, middle, high = min(depths), float(np.median(depths)), max(depths)
        axis.axhspan(low, high, color=_colour(index + 3), alpha=0.08, linewidth=0)
        axis.axhline(middle, color=_colour(index + 3), linewidth=0.9, linestyle="--")
        if named:
            axis.annotate(
                name, (1.0, middle), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7,
                color=_colour(index + 3),
            )  # fmt: skip
