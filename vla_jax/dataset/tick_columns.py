"""The columns of an episode's control ticks: which pose, action, picture and sensor row each of them has."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from vla_jax.dataset import alignment
from vla_jax.dataset.options import EpisodeOptions
from vla_jax.dataset.pictures import picture_gap_notes
from vla_jax.dataset.schema import Column
from vla_jax.dataset.sensor_stream import SensorStream
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.frame import frame_times
from vla_jax.recordings.lab import POSE_NAMES, check_angle_jumps, pose_deltas
from vla_jax.recordings.recorded_times import check_times
from vla_jax.recordings.recording import Recording
from vla_jax.timing import newest_at_or_before, newest_row_times, newest_rows

MAX_SENSOR_AGE_SECONDS = 1.0
# Nominal rates further apart than this are different rates.
RATE_TOLERANCE = 0.1


@dataclass(frozen=True)
class Grid:
    """An episode's control ticks. rows: the recorded row at each; is_sample: those that may be shown in training."""

    ticks: Float[np.ndarray, " n"]
    rows: Int[np.ndarray, " n"]
    state: Float[np.ndarray, "n p"]
    actions: Float[np.ndarray, "n a"]
    is_sample: Bool[np.ndarray, " n"]


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
    """Returns the control ticks of an episode that moved; each has an action.

    Raises:
        EpisodeError: poses or actions have another rate, stop, jump, or are too few.
    """
    if recording.actions is not None:
        return _recorded_actions(recording, options)
    if recording.state is None or recording.state_names != POSE_NAMES:
        raise EpisodeError("neither actions nor the poses of an arm were recorded")
    times, poses = recording.times, recording.state
    if len(times) < 2:
        raise EpisodeError("a single pose: at least two are needed for an action")
    check_angle_jumps(times, poses)
    if options.alignment == "index":
        rows = alignment.index_ticks(len(times), recording.rate_hz, options.action_hz)
        ticks = times[rows]
    else:
        ticks, rows = alignment.control_ticks(times, options.action_hz)
        recording.notes += alignment.uneven_rate_notes(times, options.action_hz)
    if len(ticks) < 2:
        raise EpisodeError(
            f"{times[-1] - times[0]:.3g} s of poses are shorter than one action at {options.action_hz:g} Hz"
        )
    deltas = pose_deltas(poses[rows])
    ticks, rows = ticks[:-1], rows[:-1]
    is_sample = np.ones(len(ticks), bool)
    if options.alignment == "index":
        interval = int(rows[1]) if len(rows) > 1 else 1
        # The reference asks for one whole interval more than an action needs.
        is_sample = np.arange(len(ticks)) < (len(times) - interval) // interval
    return Grid(ticks, rows, poses[rows], deltas, is_sample)


def _recorded_actions(recording: Recording, options: EpisodeOptions) -> Grid:
    """Each recorded action is a tick."""
    times, actions, rate = recording.times, recording.actions, recording.rate_hz
    if abs(rate / options.action_hz - 1) > RATE_TOLERANCE:
        raise EpisodeError(
            f"actions are recorded at {rate:g} Hz, not at {options.action_hz:g} Hz; use --action-hz {rate:g}"
        )
    if actions.shape != (len(times), len(recording.action_names)) or not np.isfinite(actions).all():
        raise EpisodeError(
            f"actions of shape {actions.shape} at {len(times)} times, expected finite numbers "
            f"(n, {len(recording.action_names)})"
        )
    state = recording.state
    if state is None:
        state = np.full((len(times), len(recording.state_names)), np.nan)
    elif state.shape != (len(times), len(recording.state_names)):
        raise EpisodeError(
            f"state of shape {state.shape} at {len(times)} times, expected (n, {len(recording.state_names)})"
        )
    return Grid(times, np.arange(len(times)), state, actions, np.ones(len(times), bool))


def tick_columns(
    recording: Recording,
    grid: Grid,
    options: EpisodeOptions,
    stream: SensorStream | None,
    registered: Sequence[Column],
) -> dict[str, np.ndarray]:
    """Returns the columns of the grid's ticks but the camera instants. stream: the episode's joined sensor rows.

    Raises:
        EpisodeError: what was recorded for a registered column does not fit it.
    """
    begin, end = _sensor_rows(recording, options, stream, grid.ticks)
    columns = {
        "time": grid.ticks,
        "pose": np.asarray(grid.state, np.float64),
        "delta": np.asarray(grid.actions, np.float32),
        "sensor_begin": begin,
        "sensor_end": end,
        "sensor_time": newest_row_times(np.empty(0) if stream is None else stream.row_times, end),
        "is_sample": grid.is_sample,
    }
    for column in registered:
        recorded = recording.streams.get(column.name)
        if recorded is None:
            columns[column.name] = column.unknown(len(grid.ticks))
            continue
        check_times(recorded.times, f"stream {column.name}")
        try:
            columns[column.name] = column.aligned(recorded.times, recorded.values, grid.ticks)
        except ValueError as error:
            raise EpisodeError(str(error)) from error
    return columns


def _sensor_rows(
    recording: Recording, options: EpisodeOptions, stream: SensorStream | None, ticks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if stream is None:
        return np.full(len(ticks), -1, np.int64), np.full(len(ticks), -1, np.int64)
    if options.alignment == "timestamp":
        begin, end = newest_rows(ticks, stream.row_times, stream.segment_starts, MAX_SENSOR_AGE_SECONDS)
        without = int((end < 0).sum())
        # A recording may begin a moment after the poses; that needs no remark.
        if without > MAX_SENSOR_AGE_SECONDS * options.action_hz:
            recording.notes.append(
                f"sensor: {without} of {len(ticks)} ticks have none within {MAX_SENSOR_AGE_SECONDS:g} s before them"
            )
        return begin, end
    window = np.minimum(np.arange(len(ticks)), len(stream.window_ends) - 1)
    end = stream.window_ends[window]
    starts = np.asarray(stream.segment_starts)
    return starts[np.searchsorted(starts, end - 1, side="right") - 1], end


def newest_pictures(recording: Recording, grid: Grid, options: EpisodeOptions) -> Int[np.ndarray, "n views"]:
    """Returns each tick's picture among its view's frames, −1 before the first; views in order of their names."""
    columns = [np.empty((len(grid.ticks), 0), np.int64)]
    for view in sorted(recording.views):
        times = frame_times(recording.views[view])
        if options.alignment == "timestamp":
            newest = newest_at_or_before(times, grid.ticks)
            if len(grid.ticks):
                recording.notes += picture_gap_notes(view, times, newest, grid.ticks)
        else:
            newest = np.minimum(grid.rows, len(times) - 1)
        columns.append(newest[:, None])
    return np.concatenate(columns, axis=1)
