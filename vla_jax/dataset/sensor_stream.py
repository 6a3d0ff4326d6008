"""Joins an episode's sensor windows into one stream of rows, stored once.

Recorders save windows that follow each other, overlap (650 rows every 0.18 s), or leave gaps. Two windows are
joined where their end times say that they abut, or that they overlap and the shared rows are equal; otherwise the
later one begins a new stretch. No row that two joined windows share is stored twice.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_jax.dataset.statistics import SensorAccumulator, SensorMoments
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.sensor_rows import SensorRecording

# How far a window's time stamp may be off; the rows themselves decide within it.
JITTER_SECONDS = 0.02
# Rows with stamps of their own belong to one stretch until none comes for this long.
MAX_ROW_GAP_SECONDS = 1.0
BLOCK_ROWS = 4096


@dataclass(frozen=True)
class SensorStream:
    """The stream of one episode.

    row_times: (R,) f64, ascending within each stretch. segment_starts: first row of each stretch.
    window_ends: (N,) one past the last row of each recorded window. moments: of all rows.
    notes: what was kept apart, and where nothing was recorded.
    """

    row_times: np.ndarray
    segment_starts: tuple[int, ...]
    window_ends: np.ndarray
    moments: SensorMoments
    notes: tuple[str, ...]


def write_stream(recording: SensorRecording, path: Path, dtype: np.dtype) -> SensorStream:
    """Writes the joined rows (R, C) of `dtype` to `path`, raw, and returns what they are.

    Raises:
        EpisodeError: a value is not finite, or does not fit `dtype`; there is no more than the force.
    """
    rows = recording.rows
    if rows.channels < 2:
        raise EpisodeError(f"{rows.file}: has {rows.channels} channel(s), expected the force and depth bins")
    if rows.window_rows == 1:
        return _write_rows(recording, path, dtype)
    joiner = _Joiner(recording)
    accumulator = SensorAccumulator()
    with open(path, "wb") as out:
        for piece in joiner.pieces(rows.blocks(BLOCK_ROWS)):
            # Rows that two windows share were compared, so that every row recorded is checked here once.
            stored = _checked(piece.rows, dtype, rows.file, piece.window_of)
            accumulator.add(stored)
            out.write(np.ascontiguousarray(stored).data)
    return SensorStream(
        np.concatenate(joiner.row_times),
        tuple(joiner.segment_starts),
        np.array(joiner.window_ends, np.int64),
        accumulator.result(),
        joiner.notes(),
    )


def _write_rows(recording: SensorRecording, path: Path, dtype: np.dtype) -> SensorStream:
    """Rows that carry their own times."""
    accumulator = SensorAccumulator()
    with open(path, "wb") as out:
        first = 0
        for block in recording.rows.blocks(BLOCK_ROWS):
            rows = _checked(block[:, 0], dtype, recording.rows.file, lambda row, first=first: first + row)
            accumulator.add(rows)
            out.write(np.ascontiguousarray(rows).data)
            first += len(rows)
    times = recording.end_times
    gaps = np.diff(times)
    starts = (0, *(np.flatnonzero(gaps > MAX_ROW_GAP_SECONDS) + 1).tolist())
    notes = ()
    if len(starts) > 1:
        notes = (f"sensor: {len(starts) - 1} gap(s), the longest {gaps.max():.2f} s",)
    return SensorStream(times, starts, np.arange(len(times)) + 1, accumulator.result(), notes)


def _checked(rows: np.ndarray, dtype: np.dtype, file: str, window_of: Callable[[int], int]) -> np.ndarray:
    """Returns rows (n, C) as `dtype`; window_of names a row's window in errors. Raises EpisodeError."""
    with np.errstate(over="ignore"):
        stored = rows.astype(dtype, copy=False)
    is_finite = np.isfinite(stored)
    if not is_finite.all():
        row = int(np.argmin(is_finite.all(axis=1)))
        value = rows[row][~is_finite[row]][0]
        where = f"{file}: window {window_of(row)}"
        if np.isfinite(value):
            raise EpisodeError(f"{where}: {value:g} does not fit {dtype}; use --sensor-dtype float32")
        raise EpisodeError(f"{where}: holds {value}")
    return stored


@dataclass(frozen=True)
class _Piece:
    """Rows to store (n, C) of windows that follow each other.

    first: number of the first window; skipped: its rows that are stored already; window_rows: rows of a window.
    """

    rows: np.ndarray
    first: int
    skipped: int
    window_rows: int

    def window_of(self, row: int) -> int:
        """Returns the number of the window that a row comes from."""
        return self.first + (row + self.skipped) // self.window_rows


class _Joiner:
    def __init__(self, recording: SensorRecording) -> None:
        self.hz = recording.hz
        self.end_times = recording.end_times
        self.window_rows = recording.rows.window_rows
        self.jitter = max(1, round(JITTER_SECONDS * self.hz))
        self.nominal = np.maximum(1, np.rint(np.diff(self.end_times) * self.hz)).astype(np.int64)
        self.row_times: list[np.ndarray] = []
        self.segment_starts: list[int] = []
        self.window_ends: list[int] = []
        self._num_rows = 0
        self._last_time = -np.inf
        self._gaps: list[float] = []
        self._num_apart = 0

    def pieces(self, blocks: Iterator[np.ndarray]) -> Iterator[_Piece]:
        """Yields the rows to store, in order."""
        index, previous = 0, None
        for block in blocks:
            follows = self._plainly_follows(index, block)
            start = 0
            while start < len(block):
                # Windows that abut, the usual case, pass through as one piece.
                stop = start + 1
                while stop < len(block) and follows[stop]:
                    stop += 1
                windows = block[start:stop]
                num_new, new_segment = self._join(index, previous, windows[0])
                rows = self._take(index, windows, num_new, new_segment)
                yield _Piece(rows, index, self.window_rows - num_new, self.window_rows)
                previous = windows[-1]
                index += stop - start
                start = stop

    def _plainly_follows(self, first: int, block: np.ndarray) -> np.ndarray:
        """Tells which windows of a block abut the one before by their times and share no row with its end."""
        follows = np.zeros(len(block), bool)
        nominal = self.nominal[first : first + len(block) - 1]
        ends = block[:-1, -self.jitter :]
        follows[1:] = (nominal == self.window_rows) & ~(ends == block[1:, :1]).all(axis=2).any(axis=1)
        return follows

    def _join(self, index: int, previous: np.ndarray | None, window: np.ndarray) -> tuple[int, bool]:
        """Returns how many rows of the window's end are new, and whether it begins a new stretch."""
        if previous is None:
            return self.window_rows, True
        shift = int(self.nominal[index - 1])
        if shift > self.window_rows + self.jitter:
            self._gaps.append((shift - self.window_rows) / self.hz)
            return self.window_rows, True
        nearly_abuts = shift >= self.window_rows - self.jitter
        # Rows that do not change say nothing about an overlap; then the times decide.
        is_flat = np.array_equal(previous[-2], previous[-1])
        if not (nearly_abuts and is_flat):
            found = self._matching_shift(previous, window, shift)
            if found is not None:
                return found, False
        if nearly_abuts:
            return self.window_rows, False
        self._num_apart += 1
        return self.window_rows, True

    def _matching_shift(self, previous: np.ndarray, window: np.ndarray, nominal: int) -> int | None:
        low, high = max(1, nominal - self.jitter), min(self.window_rows - 1, nominal + self.jitter)
        equal = np.flatnonzero((previous[low : high + 1] == window[0]).all(axis=1)) + low
        for shift in equal[np.argsort(np.abs(equal - nominal), kind="stable")].tolist():
            if np.array_equal(previous[shift:], window[: self.window_rows - shift]):
                return shift
        return None

    def _take(self, index: int, windows: np.ndarray, num_new: int, new_segment: bool) -> np.ndarray:
        if new_segment:
            self.segment_starts.append(self._num_rows)
            self._last_time = -np.inf
        rows = windows.reshape(-1, windows.shape[-1])[self.window_rows - num_new :]
        ends = self.end_times[index : index + len(windows), None]
        times = (ends - np.arange(self.window_rows - 1, -1, -1) / self.hz).ravel()[-len(rows) :]
        times = np.maximum.accumulate(np.maximum(times, self._last_time))
        self._last_time = times[-1]
        self.row_times.append(times)
        first_end = self._num_rows + num_new
        self.window_ends += [first_end + i * self.window_rows for i in range(len(windows))]
        self._num_rows += len(rows)
        return rows

    def notes(self) -> tuple[str, ...]:
        found = []
        if self._gaps:
            found.append(
                f"sensor: {len(self._gaps)} gap(s) between windows, the longest {max(self._gaps):.2f} s"
            )
        if self._num_apart:
            found.append(
                f"sensor: {self._num_apart} window(s) overlap the one before by their times, but the rows differ; "
                "kept apart"
            )
        return tuple(found)
