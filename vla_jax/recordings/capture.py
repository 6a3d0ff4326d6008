"""Reads `capture` episodes: raw recordings robot_state_*.csv, sensor_data_*.npz and View*/[left|right/]*.jpg."""

import re
from pathlib import Path

import numpy as np

from vla_jax.recordings import untrusted_files
from vla_jax.recordings.recording import (
    IMAGE_SUFFIXES,
    NUM_CHANNELS,
    EpisodeError,
    Recording,
    SensorRecording,
    ViewImages,
    task_instruction,
)
from vla_jax.recordings.windows import DEFAULT_SENSOR_HZ, pose_columns, view_images

FORCE_NAMES = ("forces", "force")
ASCAN_NAMES = ("alines", "aline")
MATCH_LIMIT_SECONDS = 0.010


def read_capture(
    folder: Path, match_limit: float = MATCH_LIMIT_SECONDS, *, with_sensor: bool = True
) -> Recording:
    """Reads one raw recording; pictures and sensor arrays are listed, not read.

    match_limit: a picture further than this many seconds from every pose is dropped and counted.
    with_sensor: False leaves the sensor's file unopened.

    Raises:
        EpisodeError: a file is damaged, or there are several where one is expected.
    """
    recording = Recording(
        name=folder.resolve().name,
        format="capture",
        folder=folder,
        instruction=task_instruction(folder),
    )
    with recording.collecting():
        path = _only_file(folder, "robot_state_*.csv")
        if path is not None:
            recording.pose_times, recording.poses = pose_columns(
                untrusted_files.read_csv_columns(path), path.name
            )
    with recording.collecting():
        views = read_capture_views(folder)
        recording.views = _matched(views, recording, match_limit)
    if with_sensor:
        with recording.collecting():
            path = _only_file(folder, "sensor_data_*.npz")
            if path is not None:
                recording.sensor = _sensor(path, recording.notes)
    return recording


def _only_file(folder: Path, pattern: str) -> Path | None:
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        raise EpisodeError(f"{pattern}: {len(found)} such files, expected one per recording")
    return found[0] if found else None


def read_capture_views(folder: Path) -> dict[str, ViewImages]:
    """Lists the pictures of View*/ and View*/left, View*/right; the latter become views View1_left, View1_right."""
    views = {}
    for view_folder in sorted(folder.iterdir()):
        if not view_folder.is_dir() or not re.fullmatch(r"[Vv]iew\w*", view_folder.name):
            continue
        for side in ("", "left", "right"):
            place = view_folder / side
            if not place.is_dir():
                continue
            names = [entry.name for entry in place.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES]
            if names:
                view = "_".join(filter(None, (view_folder.name, side)))
                views[view] = view_images(names, "/".join(filter(None, (view_folder.name, side))))
    return views


def _matched(views: dict[str, ViewImages], recording: Recording, limit: float) -> dict[str, ViewImages]:
    if recording.pose_times is None:
        return views
    matched, num_dropped, num_all = {}, 0, 0
    for view, images in views.items():
        keep = distance_to_nearest(recording.pose_times, images.times) <= limit
        num_all += len(keep)
        num_dropped += int((~keep).sum())
        paths = tuple(path for path, kept in zip(images.paths, keep, strict=True) if kept)
        if paths:
            matched[view] = ViewImages(images.times[keep], paths)
    if num_dropped:
        recording.notes.append(
            f"{num_dropped} of {num_all} pictures dropped: no pose within {1000 * limit:g} ms of them"
        )
    return matched


def distance_to_nearest(times: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Returns the distance in seconds of each moment to the nearest of the ascending `times`."""
    after = np.searchsorted(times, moments)
    right = np.abs(times[np.minimum(after, len(times) - 1)] - moments)
    return np.minimum(right, np.abs(times[np.maximum(after - 1, 0)] - moments))


def _sensor(path: Path, notes: list[str]) -> SensorRecording | None:
    members = untrusted_files.open_npz(path)
    force = next((members[name] for name in FORCE_NAMES if name in members), None)
    ascan = next((members[name] for name in ASCAN_NAMES if name in members), None)
    if "timestamps" not in members or force is None:
        raise EpisodeError(
            f"{path.name}: has no forces with timestamps, only {', '.join(members) or 'nothing'}"
        )
    num_rows = force.shape[0] if force.shape else 0
    if ascan is None:
        notes.append(
            f"{path.name}: holds 1 sensor channel (force) and no A-scan; the policy's sensor has {NUM_CHANNELS}, "
            "packed as an episode without sensor"
        )
        return None
    if ascan.shape != (num_rows, NUM_CHANNELS - 1):
        raise EpisodeError(
            f"{path.name}: A-scans of shape {ascan.shape} for {num_rows} forces, expected "
            f"({num_rows}, {NUM_CHANNELS - 1})"
        )
    if force.shape not in ((num_rows,), (num_rows, 1)) or not num_rows:
        raise EpisodeError(f"{path.name}: forces have shape {force.shape}, expected (N,) with N > 0")
    times = members["timestamps"].read().astype(np.float64)
    if times.shape != (num_rows,):
        raise EpisodeError(f"{path.name}: {times.shape} timestamps for {num_rows} forces")
    untrusted_files.check_times(times, f"{path.name}[timestamps]")
    return SensorRecording(untrusted_files.RowMembers(force, ascan), times, DEFAULT_SENSOR_HZ)
