"""Actions cut to limits without leaving their way: what belongs together is shortened together.

Axes: a action dimensions, of which the first p move the pose's p values. groups: dimensions that are one motion, such
as dx dy dz; a dimension in none is cut by itself.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

EDGE = 1e-3
"""mm or degrees: a pose so little past its limits is at them."""


def cut_speed(
    action: Float[np.ndarray, " a"],
    low: Float[np.ndarray, " a"],
    high: Float[np.ndarray, " a"],
    groups: Sequence[Sequence[int]],
) -> Float[np.ndarray, " a"]:
    """Returns the action between low and high. A group keeps its direction, but for a side of an axis that has a
    smaller limit than its other side: that is cut by itself, since noise about 0 would hold up the whole motion."""
    largest = np.maximum(np.abs(low), np.abs(high))
    share = _together(_share(largest, np.abs(action)), groups)
    return np.clip(_scaled(action, share), low, high)


def cut_acceleration(
    action: Float[np.ndarray, " a"],
    previous: Float[np.ndarray, " a"],
    max_change: Float[np.ndarray, " a"],
    groups: Sequence[Sequence[int]],
) -> Float[np.ndarray, " a"]:
    """Returns the action not further from the previous one than may be, on the way there. Slowing down is never cut:
    what goes back or slower is so at once, and what else changes begins from there."""
    same_way = action * previous > 0
    slowed = np.where(same_way, np.sign(action) * np.minimum(np.abs(action), np.abs(previous)), 0.0)
    faster = action - slowed
    room = np.maximum(max_change - np.abs(previous - slowed), 0.0)
    share = _together(_share(room, np.abs(faster)), groups)
    return np.where(share < 1, slowed + _scaled(faster, share), action)


def cut_to_workspace(
    action: Float[np.ndarray, " a"],
    pose: Float[np.ndarray, " p"],
    pose_low: Float[np.ndarray, " p"],
    pose_high: Float[np.ndarray, " p"],
    angles: Sequence[int],
    groups: Sequence[Sequence[int]],
) -> tuple[Float[np.ndarray, " a"], Bool[np.ndarray, " p"]]:
    """Returns the action as far as it stays inside, and which values of the pose are outside and do not come back.

    angles: values in degrees, which are compared by the shorter way round.
    """
    size = len(pose_low)
    at, low, high = np.array(pose[:size], np.float64), np.array(pose_low), np.array(pose_high)
    for axis in angles:
        middle = (low[axis] + high[axis]) / 2
        if np.isfinite(middle):
            half = (high[axis] - low[axis]) / 2
            at[axis] = (at[axis] - middle + 180.0) % 360.0 - 180.0
            low[axis], high[axis] = -half, half
    moved = action[:size]
    below, above = at < low - EDGE, at > high + EDGE
    astray = (below & ~(moved > 0)) | (above & ~(moved < 0))
    room = np.maximum(np.where(moved > 0, high - at, at - low), 0.0)
    share = np.ones(len(action))
    share[:size] = _share(room, np.abs(moved))
    return _scaled(action, _together(share, groups)), astray


def _share(room: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns how much of what is wanted there is room for, 0 to 1."""
    return np.divide(room, wanted, out=np.ones(len(wanted)), where=wanted > room)


def _scaled(action: np.ndarray, share: np.ndarray) -> np.ndarray:
    return np.where(share < 1, action * share, action).astype(action.dtype)


def _together(share: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Gives all of a group the least share in it."""
    for group in groups:
        share[list(group)] = share[list(group)].min(initial=1.0)
    return share
