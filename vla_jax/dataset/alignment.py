"""Places recorded streams on the control grid: which pose, picture and sensor row each control tick sees.

Two alignments. `timestamp`: everything is the newest at or before the tick, so that a policy is never shown what
it could not have known. `index`: the pairing of the PyTorch reference, by position in each array; pictures and
sensor windows then drift against the poses, because they are recorded at other rates.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from vla_jax.recordings.recording import ACTION_DIM, GRIPPER, EpisodeError

Alignment = Literal["timestamp", "index"]

# Unix times in text carry microseconds, nominal ones are rounded; two stamps this close are one moment.
TIME_RESOLUTION = 1e-5

# Up to this ratio of pose rate to action rate the poses themselves are the ticks: a grid of its own beside a
# stream of the same rate would take now none, now two of its poses.
OWN_GRID_RATIO = 1.2
# A recording at nominally 5 Hz may be a little slower.
RATE_TOLERANCE = 0.9

# From here on the unevenness is below a quarter of a delta.
MAX_UNEVEN_RATIO = 4.0

NUM_GAP_TICKS = 5
MIN_GAP_SECONDS = 0.5


def wrap_degrees(angles: np.ndarray) -> np.ndarray:
    """Returns angles wrapped to (−180, 180]; those that lie there keep their bits."""
    return np.where((angles > -180.0) & (angles <= 180.0), angles, 180.0 - np.mod(180.0 - angles, 360.0))


def newest_at_or_before(times: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Returns, per moment, the index of the newest of the ascending `times` that is not later; −1 if none is."""
    return np.searchsorted(times, moments + TIME_RESOLUTION, side="right") - 1


def pose_rate(times: np.ndarray) -> float:
    """Returns the rate of a pose stream in Hz, from its median period."""
    return float(1.0 / np.median(np.diff(times)))


def control_ticks(times: np.ndarray, action_hz: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the control ticks (n,) f64 of an episode and the pose (n,) i64 that holds at each.

    The grid starts at the first pose and runs at `action_hz`; a tick takes the newest pose at or before it. Where
    the poses come at the action rate themselves, each pose is a tick.

    times: (m,) f64, ascending, m >= 2.

    Raises:
        EpisodeError: poses are slower than the actions, or stop for longer than five ticks (at least 0.5 s).
    """
    rate = pose_rate(times)
    if rate < RATE_TOLERANCE * action_hz:
        raise EpisodeError(
            f"poses come at {rate:.3g} Hz, slower than the {action_hz:g} Hz of the actions; "
            f"use --action-hz {_round_rate(rate):g}"
        )
    gaps = np.diff(times)
    limit = max(NUM_GAP_TICKS / action_hz, MIN_GAP_SECONDS)
    if gaps.max() > limit + TIME_RESOLUTION:
        row = int(np.argmax(gaps))
        raise EpisodeError(
            f"poses stop for {gaps[row]:.3g} s after row {row + 1}, {times[row] - times[0]:.2f} s into the episode "
            f"(at most {limit:.3g} s)"
        )
    if rate <= OWN_GRID_RATIO * action_hz:
        return times.copy(), np.arange(len(times))
    num_ticks = int(np.floor((times[-1] - times[0] + TIME_RESOLUTION) * action_hz)) + 1
    ticks = times[0] + np.arange(num_ticks) / action_hz
    return ticks, newest_at_or_before(times, ticks)


def uneven_rate_notes(times: np.ndarray, action_hz: float) -> list[str]:
    """Returns a remark where poses are few and do not divide into ticks, so that deltas span now more, now fewer."""
    ratio = pose_rate(times) / action_hz
    if ratio <= OWN_GRID_RATIO or ratio >= MAX_UNEVEN_RATIO or abs(ratio - round(ratio)) < 0.05:
        return []
    rate = pose_rate(times)
    return [
        f"poses at {rate:.3g} Hz do not divide into actions at {action_hz:g} Hz, so that deltas span {int(ratio)} or "
        f"{int(ratio) + 1} poses; even are --action-hz {_round_rate(rate):g} and {rate / 2:.3g}"
    ]


def _round_rate(rate: float) -> float:
    whole = np.floor(rate * 1.02)
    return float(whole) if whole >= 1 else float(f"{rate:.2g}")


def index_ticks(num_poses: int, robot_hz: float, action_hz: float) -> np.ndarray:
    """Returns the pose index at each tick of the reference: every (robot_hz // action_hz)-th row.

    The reference drops the ticks whose interval is not complete: (n − interval) // interval of them are samples.
    """
    interval = max(1, int(robot_hz // action_hz))
    return np.arange(max(0, num_poses - 1) // interval + 1) * interval


def pose_deltas(poses: np.ndarray) -> np.ndarray:
    """Returns the actions (n − 1, 7) f32 between successive poses (n, 6): mm, wrapped degrees, gripper 1."""
    deltas = np.empty((max(0, len(poses) - 1), ACTION_DIM), np.float32)
    difference = np.diff(poses, axis=0)
    deltas[:, :3] = difference[:, :3]
    deltas[:, 3:6] = wrap_degrees(difference[:, 3:])
    deltas[:, 6] = GRIPPER
    return deltas


def check_angle_jumps(times: np.ndarray, poses: np.ndarray) -> None:
    """Raises EpisodeError where an angle changes by more than an arm can turn between two poses.

    The limit is 900 degrees per second, at least 20 and at most 120 degrees per row.
    """
    change = np.abs(wrap_degrees(np.diff(poses[:, 3:], axis=0)))
    limit = np.clip(900.0 * np.diff(times), 20.0, 120.0)[:, None]
    if (change > limit).any():
        row, axis = np.argwhere(change > limit)[0]
        raise EpisodeError(
            f"pose_{'abr'[axis]} jumps by {change[row, axis]:.1f} degrees between rows {row + 1} and {row + 2} "
            f"({int((change > limit).any(axis=1).sum())} such place(s))"
        )


def newest_sensor_rows(
    ticks: np.ndarray, row_times: np.ndarray, segment_starts: Sequence[int], max_age: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns, per tick, where its sensor data begins and ends: rows [begin, end); −1, −1 where there is none.

    A window must not reach across a gap, so that `begin` is the first row of the stretch that `end` lies in.

    row_times: (R,) f64, ascending within each stretch. segment_starts: first row of each stretch.
    max_age: seconds after which the newest row counts as lost.
    """
    begin = np.full(len(ticks), -1, np.int64)
    end = np.full(len(ticks), -1, np.int64)
    newest = np.full(len(ticks), -np.inf)
    bounds = [*segment_starts, len(row_times)]
    for start, stop in itertools.pairwise(bounds):
        row = newest_at_or_before(row_times[start:stop], ticks)
        age_time = np.where(row >= 0, row_times[start:stop][np.maximum(row, 0)], -np.inf)
        better = (row >= 0) & (age_time >= newest) & (ticks - age_time <= max_age)
        begin[better], end[better] = start, start + row[better] + 1
        newest[better] = age_time[better]
    return begin, end


def chunk_rows(ticks: np.ndarray, last: np.ndarray, horizon: int) -> np.ndarray:
    """Returns the tick rows (n, horizon) of each action chunk; the last delta of the episode is repeated.

    ticks: (n,) rows; last: (n,) last row of each tick's episode.
    """
    return np.minimum(ticks[:, None] + np.arange(horizon), last[:, None])
