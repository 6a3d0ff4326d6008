"""Units of recorded poses: converted to mm and degrees where told, and asked for where the numbers look like others."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from vla_jax.contracts.specs import LAB_ACTIONS, LAB_STATE
from vla_jax.dataset.packed_episode import PackedEpisode
from vla_jax.recordings.recording import Recording

PoseUnits = Literal["mm", "m"]
AngleUnits = Literal["deg", "rad"]

_TO_MM = {"mm": 1.0, "m": 1000.0}
_TO_DEGREES = {"deg": 1.0, "rad": 180.0 / np.pi}

# An arm that never leaves a cube of 2 mm around its base, and moves by a tenth of a millimetre in a second, is one
# whose metres were read as millimetres.
LARGEST_METRES = 2.0
LARGEST_MEDIAN_SPEED = 0.1
LARGEST_SPEED = 2.0
# A little more than π.
LARGEST_RADIANS = 3.2


def convert(recording: Recording, pose_units: PoseUnits | None, angle_units: AngleUnits | None) -> None:
    """Turns an arm's poses, and actions of the lab's names, into mm and degrees. None: they are so already."""
    factors = np.repeat([_TO_MM[pose_units or "mm"], _TO_DEGREES[angle_units or "deg"]], 3)
    if (factors == 1.0).all():
        return
    if recording.state is not None and recording.state_names == LAB_STATE:
        recording.state = recording.state * factors
    if recording.actions is not None and recording.action_names == LAB_ACTIONS.names:
        recording.actions = _scaled(recording.actions, factors)
    if recording.corrections is not None and recording.action_names == LAB_ACTIONS.names:
        values = _scaled(recording.corrections.values, factors)
        recording.corrections = replace(recording.corrections, values=values)


def _scaled(actions: np.ndarray, factors: np.ndarray) -> np.ndarray:
    return np.concatenate([actions[:, :6] * factors, actions[:, 6:]], axis=1).astype(np.float32)


def looks_like_metres(episode: PackedEpisode, action_hz: float) -> bool:
    """Whether positions that are to be millimetres are so small, and so slow, that they must be metres."""
    if tuple(episode.info.action_names) != LAB_ACTIONS.names:
        return False
    speeds = np.linalg.norm(np.asarray(episode.arrays["delta"][:, :3], np.float64), axis=1) * action_hz
    moving = speeds[speeds > 0]
    if not len(moving) or np.median(moving) >= LARGEST_MEDIAN_SPEED or moving.max() >= LARGEST_SPEED:
        return False
    positions = episode.arrays["pose"][:, :3]
    return not np.isfinite(positions).all() or bool(np.abs(positions).max() < LARGEST_METRES)


def could_be_radians(episodes: Sequence[PackedEpisode]) -> bool:
    """Whether the angles of all poses, as far as any were recorded, turn and never leave what radians can be."""
    angles = [
        episode.arrays["pose"][:, 3:6]
        for episode in episodes
        if tuple(episode.info.state_names) == LAB_STATE and len(episode.arrays["pose"])
    ]
    if not angles:
        return False
    every = np.concatenate(angles)
    return bool(np.abs(every).max() <= LARGEST_RADIANS and np.ptp(every, axis=0).max() > 0)
