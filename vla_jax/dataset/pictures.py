"""An episode's pictures: checked once, listed, and grouped into the camera instants that control ticks see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, UInt8

from vla_jax.dataset.alignment import Grid
from vla_jax.recordings.clocks import clocks_differ
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.frame import Frame, frame_times
from vla_jax.recordings.recording import Recording
from vla_jax.timing import TIME_RESOLUTION, newest_at_or_before

MAX_LISTED_FAULTS = 5


@dataclass(frozen=True)
class PictureTable:
    """An episode's readable pictures, view after view.

    rows: view, sorted → row of each of its frames, −1 where the picture is missing. faults: what could not be read.
    """

    locators: tuple[str, ...]
    digests: UInt8[np.ndarray, "m 32"]
    times: Float64[np.ndarray, " m"]
    rows: dict[str, Int32[np.ndarray, " frames"]]
    faults: tuple[str, ...]


def check_pictures(views: Mapping[str, Sequence[Frame]]) -> PictureTable:
    """Decodes every picture once; views in order of their names."""
    found: list[tuple[str, bytes, float]] = []
    rows: dict[str, np.ndarray] = {}
    faults: list[str] = []
    for view in sorted(views):
        rows[view] = np.full(len(views[view]), -1, np.int32)
        for i, frame in enumerate(views[view]):
            if frame.locator is None:
                continue
            try:
                digest = frame.check()
            except EpisodeError as error:
                faults.append(str(error))
                continue
            except OSError as error:
                faults.append(f"{frame.locator}: cannot be read ({error.strerror or error})")
                continue
            rows[view][i] = len(found)
            found.append((frame.locator, bytes.fromhex(digest), frame.time))
    listed = faults[:MAX_LISTED_FAULTS]
    if len(faults) > len(listed):
        listed.append(f"{len(faults) - len(listed)} further pictures are unreadable")
    digests = np.frombuffer(b"".join(digest for _, digest, _ in found), np.uint8).reshape(len(found), 32)
    times = np.array([time for _, _, time in found], np.float64)
    return PictureTable(tuple(locator for locator, _, _ in found), digests, times, rows, tuple(listed))


def camera_instants(
    recording: Recording, table: PictureTable, grid: Grid, max_age: float | None
) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, "i views"]]:
    """Returns the camera instant of each tick, −1 without pictures, and each instant's rows of the picture table.

    An instant is a set of pictures that ticks see together: each view's newest at or before the tick. A tick with one
    that is older than `max_age` seconds has no instant, so that none learns from a camera that has stopped. Gaps are
    noted in the recording. max_age None: each view's picture that has the number of the tick's recorded row.

    Raises:
        EpisodeError: there are pictures, and no tick has one of its time.
    """
    seen = np.full((len(grid.ticks), len(table.rows)), -1, np.int32)
    is_stale = np.zeros(len(grid.ticks), bool)
    for column, (view, rows) in enumerate(table.rows.items()):
        times = frame_times(recording.views[view])
        if max_age is None:
            newest = np.minimum(grid.rows, len(times) - 1)
        else:
            newest = newest_at_or_before(times, grid.ticks)
            recording.notes += _gap_notes(view, times, newest, grid.ticks, max_age)
            is_stale |= (newest >= 0) & (grid.ticks - times[newest] > max_age + TIME_RESOLUTION)
        seen[:, column] = np.where(newest >= 0, rows[newest], -1)
    seen[is_stale] = -1
    if max_age is not None and seen.size and not (seen >= 0).any():
        raise EpisodeError(_no_picture_of_its_time(recording, grid.ticks, max_age))
    if is_stale.any():
        recording.notes.append(
            f"{is_stale.sum()} of {len(seen)} ticks have a picture older than {max_age:g} s and are left out"
        )
    present = (seen >= 0).any(axis=1)
    instant = np.full(len(seen), -1, np.int32)
    if not present.any():
        return instant, np.empty((0, seen.shape[1]), np.int32)
    changed = np.ones(len(seen), bool)
    changed[1:] = (seen[1:] != seen[:-1]).any(axis=1)
    starts = np.flatnonzero(changed & present)
    instant[present] = (np.cumsum(changed & present) - 1)[present]
    return instant, seen[starts]


def _no_picture_of_its_time(recording: Recording, ticks: np.ndarray, max_age: float) -> str:
    """Says why no tick has pictures that are not too old, by the view that is furthest from the ticks."""
    times = {view: frame_times(frames) for view, frames in recording.views.items()}
    distance = {view: max(ticks[0] - of_view[-1], of_view[0] - ticks[-1]) for view, of_view in times.items()}
    view = max(distance, key=distance.__getitem__)
    if distance[view] > 0:
        return clocks_differ(view, times[view], ticks)
    return f"no tick has a picture of every view that is at most {max_age:g} s old; see --max-image-age"


def _gap_notes(
    view: str, times: np.ndarray, newest: np.ndarray, ticks: np.ndarray, max_age: float
) -> list[str]:
    """Returns remarks on where a view has no picture for long: before its first, between two, after its last."""
    notes: list[str] = []
    if not len(ticks):
        return notes
    before = min(times[0], ticks[-1]) - ticks[0]
    if before > max_age:
        notes.append(f"{view} begins {before:.1f} s after the poses; the ticks before do not see it")
    seen = newest >= 0
    if not seen.any():
        return notes
    ages = ticks[seen] - times[newest[seen]]
    # A gap is long where the next picture comes late; whatever comes after the last tick is none.
    oldest = int(np.argmax(ages))
    if ages[oldest] > max_age:
        last = newest[seen][oldest]
        where = f"{times[last] - ticks[0]:.1f} s into the episode"
        if last == len(times) - 1:
            notes.append(f"{view} ends {ages[oldest]:.1f} s before the poses")
        else:
            notes.append(f"{view} has no picture for {ages[oldest]:.1f} s, {where}")
    return notes
