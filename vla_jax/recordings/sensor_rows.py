"""Sensor rows of an episode, known by their headers and read in blocks, as recorders save them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vla_jax.recordings.untrusted_npz import NpzMember


class SensorRows(Protocol):
    """The sensor arrays of one episode on disk, read in blocks. Channel 0 is the force, the others depth bins."""

    @property
    def file(self) -> str:
        """Name of the file they come from."""

    @property
    def num_windows(self) -> int:
        """How many windows there are."""

    @property
    def window_rows(self) -> int:
        """Rows of a window."""

    @property
    def channels(self) -> int:
        """Numbers in a row."""

    @property
    def dtype(self) -> np.dtype:
        """Type in the file."""

    def blocks(self, rows_per_block: int) -> Iterator[np.ndarray]:
        """Yields (n, window_rows, channels) arrays, in order, at least one window each."""


@dataclass(frozen=True)
class SensorRecording:
    """Sensor windows and the time of each window's last row; single rows are windows of one row."""

    rows: SensorRows
    end_times: np.ndarray
    hz: float


@dataclass(frozen=True)
class WindowMember:
    """Sensor windows (N, W, C) of one npz member."""

    source: NpzMember

    @property
    def file(self) -> str:
        """Name of the file they come from."""
        return self.source.path.name

    @property
    def num_windows(self) -> int:
        """N."""
        return self.source.shape[0]

    @property
    def window_rows(self) -> int:
        """W."""
        return self.source.shape[1]

    @property
    def channels(self) -> int:
        """C."""
        return self.source.shape[2]

    @property
    def dtype(self) -> np.dtype:
        """Type in the file."""
        return self.source.dtype

    def blocks(self, rows_per_block: int) -> Iterator[np.ndarray]:
        """Yields windows in order, about `rows_per_block` rows at a time."""
        yield from self.source.blocks(max(1, rows_per_block // max(1, self.window_rows)))


@dataclass(frozen=True)
class RowMembers:
    """Sensor rows kept as two npz members: force (R,) or (R, 1), A-scan (R, C − 1)."""

    force: NpzMember
    ascan: NpzMember

    window_rows = 1

    @property
    def file(self) -> str:
        """Name of the file they come from."""
        return self.force.path.name

    @property
    def num_windows(self) -> int:
        """R."""
        return self.force.shape[0]

    @property
    def channels(self) -> int:
        """C."""
        return 1 + self.ascan.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Type in the file."""
        return np.promote_types(self.force.dtype, self.ascan.dtype)

    def blocks(self, rows_per_block: int) -> Iterator[np.ndarray]:
        """Yields (n, 1, C) rows in order."""
        forces = self.force.read().reshape(-1)
        start = 0
        for scans in self.ascan.blocks(rows_per_block):
            stop = start + len(scans)
            yield np.concatenate([forces[start:stop, None], scans], axis=1, dtype=self.dtype)[:, None]
            start = stop


@dataclass(frozen=True)
class ArrayRows:
    """Sensor rows (R, C) in memory, or mapped."""

    array: np.ndarray
    file: str

    window_rows = 1

    @property
    def num_windows(self) -> int:
        """R."""
        return len(self.array)

    @property
    def channels(self) -> int:
        """C."""
        return self.array.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Type of the rows."""
        return self.array.dtype

    def blocks(self, rows_per_block: int) -> Iterator[np.ndarray]:
        """Yields (n, 1, C) rows in order."""
        for start in range(0, len(self.array), rows_per_block):
            yield np.asarray(self.array[start : start + rows_per_block])[:, None]
