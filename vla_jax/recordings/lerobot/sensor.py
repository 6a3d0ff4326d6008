"""Sensor windows that lie in a column of a parquet file, read in batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.lerobot.index import Feature
from vla_jax.recordings.lerobot.tables import numbers, read_batches


@dataclass(frozen=True)
class SensorColumn:
    """The windows of some rows of a file: of every `stride`-th from `first` on that is valid.

    valid: (n,) bool, one for each of those rows.
    """

    path: Path
    feature: Feature
    first: int
    stride: int
    valid: np.ndarray

    @property
    def file(self) -> str:
        """Name of the file and column they come from."""
        return f"{self.path.name}[{self.feature.key}]"

    @property
    def num_windows(self) -> int:
        """How many there are."""
        return int(self.valid.sum())

    @property
    def window_rows(self) -> int:
        """Rows of a window; a vector is one row."""
        return self.feature.shape[0] if len(self.feature.shape) == 2 else 1

    @property
    def channels(self) -> int:
        """Numbers in a row."""
        return self.feature.shape[-1]

    @property
    def dtype(self) -> np.dtype:
        """Type in the file."""
        try:
            return np.dtype(self.feature.dtype)
        except TypeError as error:
            raise EpisodeError(f"{self.file}: holds {self.feature.dtype[:40]!r}, expected numbers") from error

    def blocks(self, rows_per_block: int) -> Iterator[np.ndarray]:
        """Yields (n, window_rows, channels) f32, in order."""
        at, stop = 0, self.first + len(self.valid) * self.stride
        per_batch = max(1, rows_per_block // self.window_rows)
        for piece in read_batches(self.path, self.feature.key, self.first, stop, per_batch):
            values = numbers(piece, self.feature.shape, self.file)
            rows = np.arange(at, at + len(values))
            at += len(values)
            taken = (rows % self.stride == 0) & self.valid[rows // self.stride]
            if taken.any():
                yield (
                    values[taken].reshape(-1, self.window_rows, self.channels).astype(np.float32, copy=False)
                )
