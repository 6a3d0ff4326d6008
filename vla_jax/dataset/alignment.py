"""The control grid: when an episode's ticks are, and which recorded row holds at each.

Two alignments. `timestamp`: everything is the newest at or before the tick (`vla_jax.timing`), so that a policy is
never shown what it could not have known. `index`: the pairing of the PyTorch reference, by position in each array;
pictures and sensor windows then drift against the poses, because they are recorded at other rates.
"""

import numpy as np

from vla_jax.recordings.findings import EpisodeError
from vla_jax.timing import TIME_RESOLUTION, newest_at_or_before

# Up to this ratio of pose rate to action rate the poses themselves are the ticks: a grid of its own beside a
# stream of the same rate would take now none, now two of its poses.
OWN_GRID_RATIO = 1.2
# A recording at nominally 5 Hz may be a little slower.
RATE_TOLERANCE = 0.9

# From here on the unevenness is below a quarter of a delta.
MAX_UNEVEN_RATIO = 4.0

NUM_GAP_TICKS = 5
MIN_GAP_SECONDS = 0.5


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


def begins_chunk(num_ticks: int, horizon: int) -> np.ndarray:
    """Tells which ticks begin one of the action chunks that the reference shows: whole ones, and not the last."""
    begins = np.arange(num_ticks) % horizon == 0
    begins[(num_ticks - horizon) // horizon * horizon :] = False
    return begins
