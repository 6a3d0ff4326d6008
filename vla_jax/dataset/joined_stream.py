"""The sensor rows of all episodes in one file, copied piece by piece, or linked where nothing has changed."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vla_jax.contracts.specs import SensorSpec
from vla_jax.dataset.packed_episode import PackedEpisode

COPY_BYTES = 8 << 20


def write_joined_stream(path: Path, episodes: Sequence[PackedEpisode], dtype: np.dtype) -> None:
    """Writes the sensor rows (R, C) of all episodes, one after another, as a .npy file.

    Where there are none it has the lab's channels, and no rows.
    """
    with_sensor = [episode for episode in episodes if episode.sensor_file is not None]
    num_channels = with_sensor[0].info.sensor_channels if with_sensor else SensorSpec().channels
    row_bytes = num_channels * dtype.itemsize
    unchanged = _unchanged_stream(with_sensor, row_bytes)
    if unchanged is not None:
        with suppress(OSError):  # A file system without hard links: it is copied below.
            os.link(unchanged, path)
            return
    num_rows = sum(episode.info.sensor_rows for episode in with_sensor)
    with open(path, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (num_rows, num_channels)})
        for episode in with_sensor:
            assert episode.sensor_file is not None
            with open(episode.sensor_file, "rb") as source:
                source.seek(episode.sensor_offset)
                _copy(source, file, episode.info.sensor_rows * row_bytes)


def _unchanged_stream(episodes: Sequence[PackedEpisode], row_bytes: int) -> Path | None:
    """Returns the stream of the data set that is there, if it is exactly these episodes in this order."""
    # Only a joined stream has a header before its first row, and that is shorter than a row.
    if not episodes or not 0 < episodes[0].sensor_offset < row_bytes:
        return None
    file, end = episodes[0].sensor_file, episodes[0].sensor_offset
    for episode in episodes:
        if (episode.sensor_file, episode.sensor_offset) != (file, end):
            return None
        end += episode.info.sensor_rows * row_bytes
    return file if file is not None and file.stat().st_size == end else None


def _copy(source: BinaryIO, target: BinaryIO, num_bytes: int) -> None:
    while num_bytes:
        data = source.read(min(num_bytes, COPY_BYTES))
        if not data:
            raise OSError(f"{source.name} ends too early")
        target.write(data)
        num_bytes -= len(data)
