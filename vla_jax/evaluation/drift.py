"""Drift of the trajectory that results from executing predicted chunks one after another.

Open loop: the chunk predicted at tick 0 is executed whole, then that of tick 8, and so on, while the observations
are those of the recording. The drift is how far the integrated pose is then from the recorded one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vla_jax.contracts.specs import ActionSpec
from vla_jax.evaluation.metrics import MotionDims


@dataclass(frozen=True)
class Drift:
    """Distance from the recorded trajectory of one stretch of consecutive ticks.

    Attributes:
        episode: index of the episode.
        ticks: m, how many.
        position: [m] mm, length of the position error after each executed action; None where no action is in mm.
        angle: [m] degrees, length of the vector of wrapped Euler angle errors, likewise.
    """

    episode: int
    ticks: int
    position: Float[np.ndarray, " m"] | None
    angle: Float[np.ndarray, " m"] | None


def wrap_degrees(angle: np.ndarray) -> np.ndarray:
    """Maps angles in degrees to (−180, 180]."""
    return 180.0 - np.mod(180.0 - angle, 360.0)


def executed_actions(predicted: Float[np.ndarray, "m h a"]) -> Float[np.ndarray, "m a"]:
    """Returns the actions of m consecutive ticks when chunks are executed whole, from ticks 0, h, 2h, …"""
    ticks, horizon = predicted.shape[:2]
    index = np.arange(ticks)
    return predicted[index - index % horizon, index % horizon]


def integrated_drift(
    predicted: Float[np.ndarray, "m h a"], recorded: Float[np.ndarray, "m a"], actions: ActionSpec
) -> tuple[Float[np.ndarray, " m"] | None, Float[np.ndarray, " m"] | None]:
    """Returns position drift in mm and angle drift in degrees after each of m consecutive ticks.

    predicted: the chunk predicted at each tick; recorded: the delta that was executed after it. None where no
    dimension of `actions` has the unit.
    """
    dims = MotionDims.of(actions)
    error = np.cumsum(np.asarray(executed_actions(predicted), np.float64) - recorded, axis=0)
    position, angle = error[:, dims.translation], wrap_degrees(error[:, dims.rotation])
    return _length(position), _length(angle)


def drift_per_episode(
    predicted: Float[np.ndarray, "n h a"],
    recorded: Float[np.ndarray, "n a"],
    tick: Int[np.ndarray, " n"],
    episode: Int[np.ndarray, " n"],
    actions: ActionSpec,
) -> list[Drift]:
    """Integrates every episode's chunks; a gap in an episode's ticks starts a new stretch there.

    tick: rows of the data set's tick table, ascending; episode: the episode of each.
    """
    if not len(tick):
        return []
    starts = 1 + np.flatnonzero((np.diff(tick) != 1) | (np.diff(episode) != 0))
    return [
        Drift(int(episode[rows[0]]), len(rows), *integrated_drift(predicted[rows], recorded[rows], actions))
        for rows in np.split(np.arange(len(tick)), starts)
    ]


def summarise_drift(drifts: list[Drift]) -> dict[str, Any]:
    """Returns the mean over stretches of the final and of the mean drift, the worst final one, and each stretch's.

    Keys: final_mm, mean_mm, worst_mm, final_deg, mean_deg, worst_deg (None without stretches, and where no action has
    the unit), episodes.
    """
    per_stretch = [
        {
            "episode": drift.episode,
            "ticks": drift.ticks,
            **_ends("mm", drift.position),
            **_ends("deg", drift.angle),
        }
        for drift in drifts
    ]
    summary: dict[str, Any] = {}
    for unit in ("mm", "deg"):
        final, mean = (_known(entry[f"{name}_{unit}"] for entry in per_stretch) for name in ("final", "mean"))
        summary[f"final_{unit}"] = float(np.mean(final)) if final else None
        summary[f"mean_{unit}"] = float(np.mean(mean)) if mean else None
        summary[f"worst_{unit}"] = max(final, default=None)
    return {**summary, "episodes": per_stretch}


def _length(errors: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"] | None:
    return np.linalg.norm(errors, axis=-1) if errors.shape[-1] else None


def _ends(unit: str, drift: Float[np.ndarray, " m"] | None) -> dict[str, float | None]:
    if drift is None:
        return {f"final_{unit}": None, f"mean_{unit}": None}
    return {f"final_{unit}": float(drift[-1]), f"mean_{unit}": float(drift.mean())}


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
