"""An episode's pictures: checked once, listed, and grouped into the camera instants that control ticks see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int, Int32, UInt8

from feature_cache.keys import image_digest
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.frame import Frame, check_frame

MAX_PICTURE_AGE_SECONDS = 2.0
MAX_LISTED_FAULTS = 5


@dataclass(frozen=True)
class PictureTable:
    """An episode's readable pictures, view after view.

    rows: view → row of each of its frames, −1 where the picture is missing. faults: what could not be read.
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
                data = check_frame(frame)
            except EpisodeError as error:
                faults.append(str(error))
                continue
            rows[view][i] = len(found)
            found.append((frame.locator, bytes.fromhex(image_digest(data)), frame.time))
    listed = faults[:MAX_LISTED_FAULTS]
    if len(faults) > len(listed):
        listed.append(f"{len(faults) - len(listed)} further pictures are unreadable")
    digests = np.frombuffer(b"".join(digest for _, digest, _ in found), np.uint8).reshape(len(found), 32)
    times = np.array([time for _, _, time in found], np.float64)
    return PictureTable(tuple(locator for locator, _, _ in found), digests, times, rows, tuple(listed))


def camera_instants(
    newest: Int[np.ndarray, "n views"], rows: Sequence[Int32[np.ndarray, " frames"]]
) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, "i views"]]:
    """Returns the camera instant of each tick, −1 without pictures, and each instant's rows of the picture table.

    newest: position of each tick's picture among its view's frames, −1 before the first.
    rows: per view, the row of the picture table of each frame.
    """
    seen = np.full(newest.shape, -1, np.int32)
    for column, of_view in enumerate(rows):
        position = newest[:, column]
        seen[:, column] = np.where(position >= 0, of_view[position], -1)
    present = (seen >= 0).any(axis=1)
    instant = np.full(len(seen), -1, np.int32)
    if not present.any():
        return instant, np.empty((0, seen.shape[1]), np.int32)
    changed = np.ones(len(seen), bool)
    changed[1:] = (seen[1:] != seen[:-1]).any(axis=1)
    starts = np.flatnonzero(changed & present)
    instant[present] = (np.cumsum(changed & present) - 1)[present]
    return instant, seen[starts]


def picture_gap_notes(view: str, times: np.ndarray, newest: np.ndarray, ticks: np.ndarray) -> list[str]:
    """Returns remarks on where a view has no picture for long: before its first, between two, after its last."""
    notes = []
    before = min(times[0], ticks[-1]) - ticks[0]
    if before > MAX_PICTURE_AGE_SECONDS:
        notes.append(f"{view} begins {before:.1f} s after the poses; the ticks before do not see it")
    seen = newest >= 0
    if not seen.any():
        return notes
    ages = ticks[seen] - times[newest[seen]]
    # A gap is long where the next picture comes late; whatever comes after the last tick is none.
    oldest = int(np.argmax(ages))
    if ages[oldest] > MAX_PICTURE_AGE_SECONDS:
        last = newest[seen][oldest]
        where = f"{times[last] - ticks[0]:.1f} s into the episode"
        if last == len(times) - 1:
            notes.append(f"{view} ends {ages[oldest]:.1f} s before the poses; its last picture is kept")
        else:
            notes.append(f"{view} has no picture for {ages[oldest]:.1f} s, {where}; the one before is kept")
    return notes
