"""Sensor rows of a `windows` episode whose recording was cut off: they were appended as they came, and not yet put
into sensor_data.npz."""

from pathlib import Path

import numpy as np

from vla_jax.recordings.lab import NUM_CHANNELS, SENSOR_HZ
from vla_jax.recordings.sensor_rows import ArrayRows, SensorRecording
from vla_jax.recordings.untrusted_files import LATEST_UNIX_TIME, check_ordinary

SENSOR_FILE = "sensor_rows.bin"
SENSOR_RECORD = np.dtype([("time", "<f8"), ("row", "<f4", NUM_CHANNELS)])
"""When a row was taken, and the row."""
MAX_BYTES = 64 << 30


def appended_rows(path: Path) -> np.ndarray:
    """Maps the rows of a file that may end in the middle of one, or in what a disk makes of a power cut.

    Returns (n,) of `SENSOR_RECORD`, times ascending. Raises EpisodeError, or OSError where there is no file.
    """
    check_ordinary(path, MAX_BYTES)
    count = path.stat().st_size // SENSOR_RECORD.itemsize
    if count == 0:
        return np.empty(0, SENSOR_RECORD)
    records = np.memmap(path, SENSOR_RECORD, "r", shape=(count,))
    times = np.array(records["time"])
    follows = (times > 0) & (times < LATEST_UNIX_TIME)
    follows[1:] &= times[1:] > times[:-1]
    return records if follows.all() else records[: int(np.argmin(follows))]


def unfinished_sensor(path: Path) -> SensorRecording | None:
    """Returns the rows of an unfinished recording; None where there are none."""
    if not path.exists():
        return None
    records = appended_rows(path)
    if not len(records):
        return None
    return SensorRecording(ArrayRows(records["row"], SENSOR_FILE), np.array(records["time"]), SENSOR_HZ)
