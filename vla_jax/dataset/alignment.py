"""The control grid: when an episode's ticks are, and which recorded row holds at each.

Two alignments. `timestamp`: everything is the newest at or before the tick (`vla_jax.timing`), so that a policy is
never shown what it could not have known. `index`: the pairing of the PyTorch reference, by position in each array;
pictures and sensor windows then drift against the poses, because they are recorded at other rates.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from vla_jax.contracts.specs import LAB_STATE
from vla_jax.dataset.options import EpisodeOptions
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.lab import check_angle_jumps, pose_deltas
from vla_jax.recordings.recording import Recording
from vla_jax.recordings.untrusted_files import check_times
from vla_jax.timing import TIME_RESOLUTION, newest_at_or_before

# Up to this ratio of pose rate to action rate the poses themselves are the ticks: a grid of its own beside a
# stream of the same rate would take now none, now two of its poses.
OWN_GRID_RATIO = 1.2
# A recording at nominally 5 Hz may be a little slower.
RATE_TOLERANCE = 0.9
# Nominal rates further apart than this are different rates.
NOMINAL_RATE_TOLERANCE = 0.1

# From here on the unevenness is below a quarter of a delta.
MAX_UNEVEN_RATIO = 4.0

NUM_GAP_TICKS = 5
# From a correction to its tick.
MAX_CORRECTION_TICKS = 0.25
MIN_GAP_SECONDS = 0.5


@dataclass(frozen=True)
class Grid:
    """An episode's control ticks. rows: the recorded row at each; is_sample: those that may be shown in training.

    state_hz: measured rate of the recorded state, None without.
    """

    ticks: Float[np.ndarray, " n"]
    rows: Int[np.ndarray, " n"]
    state: Float[np.ndarray, "n p"]
    actions: Float[np.ndarray, "n a"]
    is_sample: Bool[np.ndarray, " n"]
    state_hz: float | None = None


def no_ticks(recording: Recording) -> Grid:
    """Returns the grid of an episode in which nothing moved."""
    none = np.empty(0)
    return Grid(
        none,
        none.astype(np.int64),
        np.empty((0, len(recording.state_names))),
        np.empty((0, len(recording.action_names)), np.float32),
        none.astype(bool),
    )


def make_grid(recording: Recording, options: EpisodeOptions) -> Grid:
    """Returns the control ticks of an episode that moved; each has an action, where it was corrected the correction.

    Raises:
        EpisodeError: poses or actions have another rate, stop, jump, or are too few; a correction is of no tick.
    """
    grid = _recorded_grid(recording, options)
    corrections = recording.corrections
    if corrections is None:
        return grid
    nearest = np.searchsorted((grid.ticks[1:] + grid.ticks[:-1]) / 2, corrections.times)
    late = np.abs(corrections.times - grid.ticks[nearest])
    if late.max(initial=0.0) > MAX_CORRECTION_TICKS / options.rate_hz:
        row = int(np.argmax(late))
        raise EpisodeError(
            f"the correction in row {row + 1} is {late[row]:.3g} s from the nearest control tick at "
            f"{options.rate_hz:g} Hz; a correction is for one tick"
        )
    actions, is_corrected = grid.actions.copy(), np.zeros(len(grid.ticks), bool)
    actions[nearest], is_corrected[nearest] = corrections.values, True
    return replace(grid, actions=actions, is_sample=grid.is_sample & is_corrected)


def _recorded_grid(recording: Recording, options: EpisodeOptions) -> Grid:
    if recording.actions is not None:
        return _recorded_actions(recording, options)
    if recording.state is None or recording.state_names != LAB_STATE:
        raise EpisodeError("neither actions nor the poses of an arm were recorded")
    times, poses = recording.times, recording.state
    assert times is not None, "what moved has times"
    if len(times) < 2:
        raise EpisodeError("a single pose: at least two are needed for an action")
    check_angle_jumps(times, poses)
    if options.alignment == "index":
        rows = index_ticks(len(times), recording.rate_hz, options.rate_hz)
        ticks = times[rows]
    else:
        ticks, rows = control_ticks(times, options.rate_hz)
        recording.notes += uneven_rate_notes(times, options.rate_hz)
    if len(ticks) < 2:
        raise EpisodeError(
            f"{times[-1] - times[0]:.3g} s of poses are shorter than one action at {options.rate_hz:g} Hz"
        )
    deltas = pose_deltas(poses[rows])
    ticks, rows = ticks[:-1], rows[:-1]
    is_sample = np.ones(len(ticks), bool)
    if options.alignment == "index":
        interval = int(rows[1]) if len(rows) > 1 else 1
        # The reference asks for one whole interval more than an action needs.
        is_sample = np.arange(len(ticks)) < (len(times) - interval) // interval
    return Grid(ticks, rows, poses[rows], deltas, is_sample, round(pose_rate(times), 3))


def _recorded_actions(recording: Recording, options: EpisodeOptions) -> Grid:
    """Each recorded action is a tick."""
    times, actions, rate = recording.times, recording.actions, recording.rate_hz
    assert times is not None, "what moved has times"
    assert actions is not None
    check_times(times, "actions")
    if abs(rate / options.rate_hz - 1) > NOMINAL_RATE_TOLERANCE:
        raise EpisodeError(
            f"actions are recorded at {rate:g} Hz, not at {options.rate_hz:g} Hz; use --action-hz {rate:g}"
        )
    if actions.shape != (len(times), len(recording.action_names)) or not np.isfinite(actions).all():
        raise EpisodeError(
            f"actions of shape {actions.shape} at {len(times)} times, expected finite numbers "
            f"(n, {len(recording.action_names)})"
        )
    state, state_hz = recording.state, None
    if state is None:
        state = np.full((len(times), len(recording.state_names)), np.nan)
    elif len(times) > 1:
        state_hz = round(pose_rate(times), 3)
    if state.shape != (len(times), len(recording.state_names)):
        raise EpisodeError(
            f"state of shape {state.shape} at {len(times)} times, expected (n, {len(recording.state_names)})"
        )
    return Grid(times, np.arange(len(times)), state, actions, np.ones(len(times), bool), state_hz)


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
