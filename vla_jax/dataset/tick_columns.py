"""The columns of an episode's control ticks: which pose, action, sensor row and recorded value each has."""

from collections.abc import Sequence

import numpy as np

from vla_jax.dataset.alignment import Grid
from vla_jax.dataset.options import EpisodeOptions
from vla_jax.dataset.schema import Column
from vla_jax.dataset.sensor_stream import SensorStream
from vla_jax.recordings.clocks import clocks_differ
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.recording import Recording
from vla_jax.recordings.untrusted_files import check_times
from vla_jax.timing import newest_row_times, newest_rows

MAX_SENSOR_AGE_SECONDS = 1.0


def tick_columns(
    recording: Recording,
    grid: Grid,
    options: EpisodeOptions,
    stream: SensorStream | None,
    registered: Sequence[Column],
) -> dict[str, np.ndarray]:
    """Returns the columns of the grid's ticks but the camera instants. stream: the episode's joined sensor rows.

    Raises:
        EpisodeError: what was recorded for a registered column does not fit it; no tick sees the sensor.
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
        if len(ticks) and without == len(ticks):
            raise EpisodeError(clocks_differ("sensor", np.sort(stream.row_times), ticks))
        # A recording may begin a moment after the poses; that needs no remark.
        if without > MAX_SENSOR_AGE_SECONDS * options.rate_hz:
            recording.notes.append(
                f"sensor: {without} of {len(ticks)} ticks have none within {MAX_SENSOR_AGE_SECONDS:g} s before them"
            )
        return begin, end
    window = np.minimum(np.arange(len(ticks)), len(stream.window_ends) - 1)
    end = stream.window_ends[window]
    starts = np.asarray(stream.segment_starts)
    return starts[np.searchsorted(starts, end - 1, side="right") - 1], end
