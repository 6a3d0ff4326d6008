"""Which of a stream's entries a moment sees, and how old they are: pure functions over arrays of times and rows.

`prepare` asks them of recordings and a live runtime of its buffers, so that a policy sees on the robot what it saw in
training. Times are float64 seconds on one clock; −1 stands for "none", in row numbers, and NaN in times.
"""

from collections.abc import Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

# Unix times in text carry microseconds, nominal ones are rounded; two stamps this close are one moment.
TIME_RESOLUTION = 1e-5


def newest_at_or_before(
    times: Float[np.ndarray, " m"], moments: Float[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """Returns, per moment, the index of the newest of the ascending `times` that is not later; −1 if none is."""
    return np.searchsorted(times, moments + TIME_RESOLUTION, side="right") - 1


def newest_rows(
    moments: Float[np.ndarray, " n"],
    row_times: Float[np.ndarray, " rows"],
    stretch_starts: Sequence[int],
    max_age: float,
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Returns, per moment, where the rows it may use begin and end: [begin, end); −1, −1 where there are none.

    A window must not reach across a gap, so that `begin` is the first row of the stretch that `end` lies in.

    row_times: ascending within each stretch. stretch_starts: first row of each stretch.
    max_age: seconds after which the newest row counts as lost.
    """
    begin = np.full(len(moments), -1, np.int64)
    end = np.full(len(moments), -1, np.int64)
    newest = np.full(len(moments), -np.inf)
    for start, stop in pairwise([*stretch_starts, len(row_times)]):
        row = newest_at_or_before(row_times[start:stop], moments)
        time = np.where(row >= 0, row_times[start:stop][np.maximum(row, 0)], -np.inf)
        better = (row >= 0) & (time >= newest) & (moments - time <= max_age)
        begin[better], end[better] = start, start + row[better] + 1
        newest[better] = time[better]
    return begin, end


def newest_row_times(
    row_times: Float[np.ndarray, " rows"], end: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Returns the time of the last row before each `end`; NaN where that is −1."""
    times = np.full(len(end), np.nan)
    times[end > 0] = row_times[end[end > 0] - 1]
    return times


def is_whole_window(
    begin: Int[np.ndarray, " n"], end: Int[np.ndarray, " n"], size: int
) -> Bool[np.ndarray, " n"]:
    """Tells where `size` rows lie in [begin, end), so that the window is a piece of the stream as it is."""
    return (end >= 0) & (end - size >= begin)


def window_rows(
    begin: Int[Any, " n"], end: Int[Any, " n"], size: int, *, library: ModuleType = np
) -> Int[Any, "n size"]:
    """Returns the `size` rows up to each `end`; those before `begin` repeat the first row. All −1 where `end` is.

    library: NumPy, or `jax.numpy` for JAX's arrays.
    """
    rows = library.maximum(end[:, None] + library.arange(-size, 0)[None, :], begin[:, None])
    return library.where(end[:, None] >= 0, rows, -1)


def past_rows(
    rows: Int[np.ndarray, " n"], first: Int[np.ndarray, " n"], size: int, every: int
) -> Int[np.ndarray, "n size"]:
    """Returns the `size` rows up to and with each of `rows`, `every` apart, oldest first; −1 for those before
    `first`."""
    found = rows[:, None] - every * np.arange(size - 1, -1, -1)
    return np.where(found >= first[:, None], found, -1)


def past_moments(moment: float, size: int, period: float) -> Float[np.ndarray, " size"]:
    """Returns the `size` moments up to and with this one, `period` apart, oldest first."""
    return moment - period * np.arange(size - 1, -1, -1)


def refresh_ticks(num_ticks: int, every: int) -> Int[np.ndarray, " n"]:
    """Returns, per control tick, the tick whose pictures its features come from: they are refreshed `every` ticks."""
    return np.arange(num_ticks) // every * every


def chunk_rows(
    ticks: Int[np.ndarray, " n"], last: Int[np.ndarray, " n"], horizon: int
) -> Int[np.ndarray, "n horizon"]:
    """Returns the ticks of each action chunk; `last`, the last tick of each one's episode, is repeated."""
    return np.minimum(ticks[:, None] + np.arange(horizon), last[:, None])


def ages(moments: Float[np.ndarray, " n"], times: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "n ..."]:
    """Returns how old each thing taken at `times` is at its moment, seconds; negative where it is later."""
    return moments.reshape(-1, *[1] * (times.ndim - 1)) - times


def oldest(ages: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """Returns the largest of each row's ages; NaN where it has none."""
    found = np.full(len(ages), np.nan)
    present = np.isfinite(ages).any(axis=1)
    if present.any():
        found[present] = np.nanmax(ages[present], axis=1)
    return found


def spread(times: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """Returns how far apart the times of each row lie, seconds; NaN where it has none."""
    return oldest(times) + oldest(-times)
