"""Turns one recorded episode into its part of the packed data set: validated, aligned, ready to be joined.

A part is a folder with `sensor.bin` (raw rows), `arrays.npz` and `part.json`; it is complete or absent.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from feature_cache.keys import image_digest
from vla_jax.dataset import alignment
from vla_jax.dataset.alignment import Alignment
from vla_jax.dataset.sensor_stream import SensorStream, write_stream
from vla_jax.dataset.statistics import SensorMoments
from vla_jax.recordings import untrusted_files
from vla_jax.recordings.capture import MATCH_LIMIT_SECONDS, read_capture
from vla_jax.recordings.discovery import EpisodeFolder
from vla_jax.recordings.legacy import read_legacy
from vla_jax.recordings.recording import POSE_DIM, EpisodeError, Finding, Recording
from vla_jax.recordings.windows import read_windows
from vla_jax.storage.replacing import replace_folder, temporary_folder

HORIZON = 8

# Part of every part's key: raise it when the same files begin to give other parts.
PART_VERSION = 2

MAX_SENSOR_AGE_SECONDS = 1.0
MAX_PICTURE_AGE_SECONDS = 2.0
MAX_LISTED_FAULTS = 5


@dataclass(frozen=True)
class PartOptions:
    """What decides a part, beside the episode's files.

    views: names of the camera views to keep; None keeps all.
    sensor: False packs every episode as one without sensor.
    allow_external_images: read pictures outside an episode's folder where its data.pkl names them.
    match_limit: a capture's picture further than this many seconds from every pose is dropped.
    """

    action_hz: float = 10.0
    alignment: Alignment = "timestamp"
    sensor_dtype: str = "float16"
    views: tuple[str, ...] | None = None
    sensor: bool = True
    allow_external_images: bool = False
    match_limit: float = MATCH_LIMIT_SECONDS


@dataclass
class Part:
    """One episode's share of the packed data set.

    info: JSON values that describe the episode (see `make_part`); arrays: named as in `make_part`.
    sensor_file: raw rows, `info["sensor_rows"]` of them, starting at byte `sensor_offset`.
    """

    info: dict[str, Any]
    arrays: dict[str, np.ndarray]
    sensor_file: Path | None = None
    sensor_offset: int = 0
    findings: list[Finding] = field(default_factory=list)


def fingerprint(folder: Path) -> str:
    """Returns a digest of an episode's name and task, and of its files' names, sizes and modification times."""
    resolved = folder.resolve()
    lines = [f"{resolved.parent.name}/{resolved.name}", *sorted(_file_lines(str(folder), ""))]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _file_lines(folder: str, prefix: str) -> Iterator[str]:
    """Yields a line per file below a folder: its path there, size and time; folders behind links are not entered."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        # The reader will say what is wrong with it.
        yield f"{prefix}\0unreadable"
        return
    for entry in entries:
        try:
            is_folder, status = entry.is_dir(), entry.stat()
        except OSError:
            # A link to nothing, or to itself.
            is_folder, status = False, entry.stat(follow_symlinks=False)
        if not is_folder:
            yield f"{prefix}{entry.name}\0{status.st_size}\0{status.st_mtime_ns}"
        elif not entry.is_symlink():
            yield from _file_lines(entry.path, f"{prefix}{entry.name}/")


def part_key(episode_fingerprint: str, options: PartOptions) -> str:
    """Returns the name of an episode's part under these options."""
    text = json.dumps([PART_VERSION, episode_fingerprint, asdict(options)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def make_part(
    episode: EpisodeFolder, options: PartOptions, directory: Path, episode_fingerprint: str
) -> list[Finding]:
    """Reads and checks one episode and writes its part to `directory`, unless it has a fault.

    Returns all that was found about the episode; the part exists exactly if none of it is a fault.
    """
    name = str(episode.path)
    try:
        recording = _read(episode, options)
    except EpisodeError as error:
        return [Finding(name, str(error))]
    except OSError as error:
        return [Finding(name, f"cannot be read ({error})")]
    with temporary_folder(directory) as folder:
        info, arrays = _build(recording, options, folder / "sensor.bin")
        findings = [Finding(name, fault) for fault in recording.faults]
        findings += [Finding(name, note, is_fault=False) for note in recording.notes]
        if recording.faults:
            return findings
        info |= {"fingerprint": episode_fingerprint, "notes": recording.notes}
        np.savez(folder / "arrays.npz", **arrays)
        (folder / "part.json").write_text(json.dumps(info), encoding="utf-8")
        replace_folder(folder, directory)
    return findings


def _read(episode: EpisodeFolder, options: PartOptions) -> Recording:
    if episode.format == "legacy":
        return read_legacy(
            episode.path, allow_external=options.allow_external_images, with_sensor=options.sensor
        )
    if episode.format == "capture":
        return read_capture(episode.path, options.match_limit, with_sensor=options.sensor)
    return read_windows(episode.path, with_sensor=options.sensor)


def load_part(directory: Path) -> Part:
    """Reads a part that `make_part` wrote."""
    info = json.loads((directory / "part.json").read_text(encoding="utf-8"))
    with np.load(directory / "arrays.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return Part(info, arrays, directory / "sensor.bin" if info["sensor_rows"] else None)


def _build(
    recording: Recording, options: PartOptions, sensor_path: Path
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with recording.collecting():
        _select_views(recording, options.views)
    images, view_rows = _check_images(recording)
    stream = None
    if recording.sensor is not None:
        with recording.collecting():
            stream = write_stream(recording.sensor, sensor_path, np.dtype(options.sensor_dtype))
            recording.notes.extend(stream.notes)
    arrays = _empty_ticks()
    if recording.pose_times is None:
        recording.notes.append("no poses: no actions, no samples")
    else:
        with recording.collecting():
            arrays = _ticks(recording, options, stream)
    views = sorted(recording.views)
    seen = arrays.pop("view_index").reshape(len(arrays["time"]), -1 if len(arrays["time"]) else len(views))
    arrays["instant"], arrays["instant_images"] = _instants(seen, [view_rows[view] for view in views])
    if recording.pose_times is not None and not views:
        recording.notes.append("no images: nothing to export, no samples")
    moments = stream.moments if stream else SensorMoments.empty()
    used = np.flatnonzero(moments.histogram.ravel())
    arrays |= {
        "image_digest": images.digests,
        "image_time": images.times,
        "moments": moments.moments,
        "centred": moments.centred,
        "histogram_bin": used.astype(np.uint16),
        "histogram_count": moments.histogram.ravel()[used],
    }
    info = {
        "name": recording.name,
        "format": recording.format,
        "instruction": recording.instruction,
        "confidence": recording.confidence,
        "segments": [asdict(segment) for segment in recording.segments],
        "views": views,
        "images": images.paths,
        "images_per_view": [int((view_rows[view] >= 0).sum()) for view in views],
        "sensor_rows": len(stream.row_times) if stream else 0,
        "sensor_hz": recording.sensor.hz if recording.sensor else None,
        "pose_hz": _pose_hz(recording),
    }
    return info, arrays


def _select_views(recording: Recording, wanted: tuple[str, ...] | None) -> None:
    if wanted is None or not recording.views:
        return
    if not set(wanted) & set(recording.views):
        raise EpisodeError(
            f"none of the views {', '.join(wanted)} is there, only {', '.join(sorted(recording.views))}"
        )
    recording.views = {view: recording.views[view] for view in wanted if view in recording.views}


def _pose_hz(recording: Recording) -> float | None:
    """Returns the measured rate of the poses; None without them, or where there are only actions."""
    if recording.poses is None or len(recording.pose_times) < 2:
        return None
    return round(alignment.pose_rate(recording.pose_times), 3)


@dataclass(frozen=True)
class _ImageTable:
    """An episode's pictures, view after view. digests: (m, 32) u8; times: (m,) f64 unix seconds."""

    paths: list[str]
    digests: np.ndarray
    times: np.ndarray


def _check_images(recording: Recording) -> tuple[_ImageTable, dict[str, np.ndarray]]:
    """Decodes every picture once. Returns their table, and view → rows of it, −1 where a picture is absent."""
    paths: list[str] = []
    digests: list[bytes] = []
    times: list[float] = []
    rows: dict[str, np.ndarray] = {}
    faults: list[str] = []
    for view in sorted(recording.views):
        images = recording.views[view]
        rows[view] = np.full(len(images.paths), -1, np.int32)
        for i, path in enumerate(images.paths):
            if path is None:
                continue
            try:
                data = _read_bytes(recording.folder, path)
                untrusted_files.check_image(Path(path), data)
            except EpisodeError as error:
                faults.append(str(error))
                continue
            rows[view][i] = len(paths)
            paths.append(path)
            digests.append(bytes.fromhex(image_digest(data)))
            times.append(float(images.times[i]))
    recording.faults += faults[:MAX_LISTED_FAULTS]
    if len(faults) > MAX_LISTED_FAULTS:
        recording.faults.append(f"{len(faults) - MAX_LISTED_FAULTS} further pictures are unreadable")
    table = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), 32)
    return _ImageTable(paths, table, np.array(times, np.float64)), rows


def _read_bytes(folder: Path, path: str) -> bytes:
    try:
        untrusted_files.check_ordinary(folder / path, untrusted_files.MAX_IMAGE_BYTES)
        return (folder / path).read_bytes()
    except OSError as error:
        raise EpisodeError(f"{path}: cannot be read ({error.strerror})") from error


def _empty_ticks() -> dict[str, np.ndarray]:
    return {
        "time": np.empty(0),
        "pose": np.empty((0, POSE_DIM)),
        "delta": np.empty((0, 7), np.float32),
        "sensor_begin": np.empty(0, np.int64),
        "sensor_end": np.empty(0, np.int64),
        "sensor_time": np.empty(0),
        "is_sample": np.empty(0, bool),
        "view_index": np.empty((0, 0), np.int64),
    }


def _ticks(recording: Recording, options: PartOptions, stream: SensorStream | None) -> dict[str, np.ndarray]:
    """Returns the arrays of one row per control tick that has a next pose; `view_index` (n, views) per view."""
    times = recording.pose_times
    if recording.actions is not None:
        ticks, poses, deltas = times, np.full((len(times), POSE_DIM), np.nan), recording.actions
        is_sample = np.ones(len(ticks), bool)
        if options.alignment == "index":
            # The reference shows whole chunks only, and not the last.
            is_sample = np.arange(len(ticks)) % HORIZON == 0
            is_sample[(len(ticks) - HORIZON) // HORIZON * HORIZON :] = False
        pose_rows = np.arange(len(ticks))
    else:
        if len(times) < 2:
            raise EpisodeError("a single pose: at least two are needed for an action")
        alignment.check_angle_jumps(times, recording.poses)
        if options.alignment == "index":
            pose_rows = alignment.index_ticks(len(times), recording.robot_hz, options.action_hz)
            ticks = times[pose_rows]
        else:
            ticks, pose_rows = alignment.control_ticks(times, options.action_hz)
            recording.notes += alignment.uneven_rate_notes(times, options.action_hz)
        poses = recording.poses[pose_rows]
        deltas = alignment.pose_deltas(poses)
        ticks, poses, pose_rows = ticks[:-1], poses[:-1], pose_rows[:-1]
        is_sample = np.ones(len(ticks), bool)
        if options.alignment == "index":
            interval = int(pose_rows[1]) if len(pose_rows) > 1 else 1
            # The reference asks for one whole interval more than an action needs.
            is_sample = np.arange(len(ticks)) < (len(times) - interval) // interval
        if not len(ticks):
            raise EpisodeError(
                f"{times[-1] - times[0]:.3g} s of poses are shorter than one action at {options.action_hz:g} Hz"
            )
    begin, end = _sensor_rows(recording, options, stream, ticks)
    return {
        "time": ticks,
        "pose": poses,
        "delta": np.asarray(deltas, np.float32),
        "sensor_begin": begin,
        "sensor_end": end,
        "sensor_time": _newest_row_times(stream, end),
        "is_sample": is_sample,
        "view_index": _view_index(recording, options, ticks, pose_rows),
    }


def _sensor_rows(
    recording: Recording, options: PartOptions, stream: SensorStream | None, ticks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if stream is None:
        return np.full(len(ticks), -1, np.int64), np.full(len(ticks), -1, np.int64)
    if options.alignment == "timestamp":
        begin, end = alignment.newest_sensor_rows(
            ticks, stream.row_times, stream.segment_starts, MAX_SENSOR_AGE_SECONDS
        )
        without = int((end < 0).sum())
        # A recording may begin a moment after the poses; that needs no remark.
        if without > MAX_SENSOR_AGE_SECONDS * options.action_hz:
            recording.notes.append(
                f"sensor: {without} of {len(ticks)} ticks have none within {MAX_SENSOR_AGE_SECONDS:g} s before them"
            )
        return begin, end
    window = np.minimum(np.arange(len(ticks)), len(stream.window_ends) - 1)
    end = stream.window_ends[window]
    starts = np.asarray(stream.segment_starts)
    return starts[np.searchsorted(starts, end - 1, side="right") - 1], end


def _newest_row_times(stream: SensorStream | None, end: np.ndarray) -> np.ndarray:
    """Returns the time of each tick's newest sensor row (n,) f64, NaN where there is none."""
    times = np.full(len(end), np.nan)
    if stream is not None:
        times[end > 0] = stream.row_times[end[end > 0] - 1]
    return times


def _view_index(
    recording: Recording, options: PartOptions, ticks: np.ndarray, pose_rows: np.ndarray
) -> np.ndarray:
    columns = []
    for view in sorted(recording.views):
        images = recording.views[view]
        if options.alignment == "timestamp":
            newest = alignment.newest_at_or_before(images.times, ticks)
            columns.append(newest)
            recording.notes += _picture_gap_notes(view, images.times, newest, ticks)
        else:
            columns.append(np.minimum(pose_rows, len(images.paths) - 1))
    return np.stack(columns, axis=1) if columns else np.empty((len(ticks), 0), np.int64)


def _picture_gap_notes(view: str, times: np.ndarray, newest: np.ndarray, ticks: np.ndarray) -> list[str]:
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


def _instants(view_index: np.ndarray, view_rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the camera instant of each tick (n,) i32, −1 without pictures, and each instant's images (i, views).

    view_index: (n, views) position in each view's own list, −1 before its first picture.
    view_rows: per view, the row in the image table of each position.
    """
    rows = np.full(view_index.shape, -1, np.int32)
    for column, of_view in enumerate(view_rows):
        position = view_index[:, column]
        rows[:, column] = np.where(position >= 0, of_view[position], -1)
    present = (rows >= 0).any(axis=1)
    instant = np.full(len(rows), -1, np.int32)
    if not present.any():
        return instant, np.empty((0, rows.shape[1]), np.int32)
    changed = np.ones(len(rows), bool)
    changed[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    starts = np.flatnonzero(changed & present)
    instant[present] = (np.cumsum(changed & present) - 1)[present]
    return instant, rows[starts]
