"""The newest of each stream, in memory of fixed size; filled by receiving threads, read by the tick."""

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from vla_jax.dataset.sensor_stream import MAX_ROW_GAP_SECONDS
from vla_jax.live.streams import Picture
from vla_jax.timing import TIME_RESOLUTION, newest_at_or_before, newest_row_times, newest_rows, window_rows

PICTURES_OF_A_VIEW = 4


@dataclass
class RowCounts:
    """What came of a stream's rows.

    received: kept ones. duplicates: came again. late: put in their place between others, or too old for it and
    dropped (too_late). lost: that are missing by the times of those around them; one that comes late after all is
    found again.
    """

    received: int = 0
    duplicates: int = 0
    late: int = 0
    too_late: int = 0
    lost: int = 0


class RowBuffer:
    """The newest rows of a stream in order of their own times, whatever order they came in.

    Rows are kept by their sender's clock, in which they are ascending; moments are given by ours and are shifted by
    the newest offset, so that a better estimate corrects what is here already.

    capacity: rows that are certainly kept. period_s: nominal time between rows, for counting lost ones; None where
    none are counted.
    """

    def __init__(self, capacity: int, width: int, dtype: type = np.float32, period_s: float | None = None):
        self.counts = RowCounts()
        self.width = width
        self._capacity = capacity
        self._period_s = period_s
        # Twice the capacity, so that windows are one piece and rows are moved rarely.
        self._times = np.empty(2 * capacity, np.float64)
        self._rows = np.empty((2 * capacity, width), dtype)
        self._count = 0
        self._offset = 0.0
        self._epoch = 0
        self._newest_received = -np.inf
        self._lock = threading.Lock()

    def add(
        self,
        times: Float[np.ndarray, " n"],
        rows: Float[np.ndarray, "n c"],
        received: float,
        offset: float,
        epoch: int,
    ) -> None:
        """Takes rows that came together. times: on our clock, `offset` of which was added to the sender's.

        epoch: how often that clock has jumped; rows of another epoch than the last are of another stretch of time, and
        those before are forgotten.
        """
        own = times - offset
        with self._lock:
            if epoch != self._epoch:
                self._epoch, self._count = epoch, 0
            self._offset = offset
            self._newest_received = received
            if self._count == 0 or own[0] > self._times[self._count - 1] + TIME_RESOLUTION:
                self._append(own, rows)
            else:
                for time, row in zip(own, rows, strict=True):
                    self._place(float(time), row)

    @property
    def received(self) -> float:
        """When something last came; −inf before."""
        return self._newest_received

    @property
    def offset(self) -> float:
        """What is added to the sender's times, seconds."""
        return self._offset

    def __len__(self) -> int:
        return min(self._count, self._capacity)

    @property
    def rate_hz(self) -> float | None:
        """Rows in a second, from the median time between the newest; None while there are few."""
        with self._lock:
            times = self._times[max(0, self._count - self._capacity) : self._count]
            periods = np.diff(times)
        return None if len(periods) < 50 else 1.0 / max(float(np.median(periods)), 1e-9)

    def newest(self, moment: float, into: Float[np.ndarray, " c"]) -> float:
        """Copies the newest row at or before a moment; returns its time, NaN where there is none."""
        with self._lock:
            row = int(newest_at_or_before(self._times[: self._count], np.array([moment - self._offset]))[0])
            if row < 0:
                return np.nan
            into[...] = self._rows[row]
            return float(self._times[row]) + self._offset

    def newest_at(
        self, moments: Float[np.ndarray, " w"], since: float, into: Float[np.ndarray, "w c"]
    ) -> Bool[np.ndarray, " w"]:
        """Copies the newest row at or before each moment; returns which there are, none of them from before `since`."""
        with self._lock:
            times = self._times[: self._count]
            rows = newest_at_or_before(times, moments - self._offset)
            there = rows >= 0
            there[there] = times[rows[there]] + self._offset >= since - TIME_RESOLUTION
            into[there] = self._rows[rows[there]]
            return there

    def window(self, moment: float, max_age: float, into: Float[np.ndarray, "t c"]) -> float:
        """Copies the rows that a policy sees at a moment, as `prepare` chooses them, oldest first.

        Rows from before a gap are not among them; where there are too few, the first is repeated.

        max_age: seconds after which the newest row counts as lost.

        Returns the newest one's time; NaN where there is none, and nothing is copied.
        """
        moments = np.array([moment - self._offset])
        with self._lock:
            times = self._times[: self._count]
            starts = [0, *(np.flatnonzero(np.diff(times) > MAX_ROW_GAP_SECONDS) + 1).tolist()]
            begin, end = newest_rows(moments, times, starts if self._count else [], max_age)
            if end[0] < 0:
                return np.nan
            rows = window_rows(begin, end, len(into))[0]
            np.take(self._rows, rows, axis=0, out=into, mode="clip")
            return float(newest_row_times(times, end)[0]) + self._offset

    def _append(self, times: np.ndarray, rows: np.ndarray) -> None:
        """Takes rows that are all newer than those here."""
        times, rows = times[-self._capacity :], rows[-self._capacity :]
        self._make_room(len(times))
        if self._count and self._period_s is not None:
            gap = times[0] - self._times[self._count - 1]
            if gap <= MAX_ROW_GAP_SECONDS:
                self.counts.lost += max(0, round(gap / self._period_s) - 1)
        self._times[self._count : self._count + len(times)] = times
        self._rows[self._count : self._count + len(times)] = rows
        self._count += len(times)
        self.counts.received += len(times)

    def _place(self, time: float, row: np.ndarray) -> None:
        """Takes one row, wherever it belongs."""
        at = int(np.searchsorted(self._times[: self._count], time))
        for neighbour in (at - 1, at):
            if 0 <= neighbour < self._count and abs(self._times[neighbour] - time) <= TIME_RESOLUTION:
                self.counts.duplicates += 1
                return
        if at == self._count:
            self._append(np.array([time]), row[None])
            return
        if at == 0:
            self.counts.too_late += 1
            return
        self._make_room(1)
        at = int(np.searchsorted(self._times[: self._count], time))
        self._times[at + 1 : self._count + 1] = self._times[at : self._count]
        self._rows[at + 1 : self._count + 1] = self._rows[at : self._count]
        self._times[at], self._rows[at] = time, row
        self._count += 1
        self.counts.received += 1
        self.counts.late += 1
        if self._period_s is not None:
            self.counts.lost = max(0, self.counts.lost - 1)

    def _make_room(self, number: int) -> None:
        if self._count + number > len(self._times):
            kept = min(self._capacity, self._count)
            self._times[:kept] = self._times[self._count - kept : self._count]
            self._rows[:kept] = self._rows[self._count - kept : self._count]
            self._count = kept


class PictureBuffer:
    """The newest pictures of each view.

    Attributes:
        received: when a picture last came, of any view; −inf before.
        late: pictures that were older than one that had come before, and were dropped.
    """

    def __init__(self) -> None:
        self.received = -np.inf
        self.late = 0
        self._views: dict[str, deque[Picture]] = {}
        self._lock = threading.Lock()

    def add(self, picture: Picture) -> None:
        """Takes a picture."""
        with self._lock:
            self.received = picture.received
            pictures = self._views.setdefault(picture.view, deque(maxlen=PICTURES_OF_A_VIEW))
            if pictures and picture.time <= pictures[-1].time:
                self.late += 1
                if pictures[-1].time <= picture.received:
                    return
                pictures.clear()  # They were stamped with a time that has not come yet.
            pictures.append(picture)

    @property
    def views(self) -> tuple[str, ...]:
        """Views that have sent something, sorted."""
        return tuple(sorted(self._views))

    def newest(self, moment: float) -> Mapping[str, Picture]:
        """Returns each view's newest picture at or before a moment; a view that has none is absent."""
        with self._lock:
            found = {}
            for view, pictures in self._views.items():
                times = np.array([picture.time for picture in pictures])
                row = int(newest_at_or_before(times, np.array([moment]))[0])
                if row >= 0:
                    found[view] = pictures[row]
            return found
