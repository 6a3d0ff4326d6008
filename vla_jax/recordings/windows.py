"""Reads `windows` episodes: metadata.json, robot_states.csv, sensor_data.npz, images/<View>/<unix time>.jpg."""

from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.recordings import untrusted_files
from vla_jax.recordings.recording import (
    IMAGE_SUFFIXES,
    EpisodeError,
    Recording,
    Segment,
    SensorRecording,
    ViewImages,
    task_instruction,
)

POSE_COLUMNS = ("pose_x", "pose_y", "pose_z", "pose_a", "pose_b", "pose_r")
# Pictures and sensor windows are stamped by the machine that receives them, and so is `recv_timestamp`.
TIME_COLUMNS = ("recv_timestamp", "origin_timestamp", "send_timestamp", "timestamp")
DEFAULT_SENSOR_HZ = 650.0
# A kilometre, or thousands of turns.
MAX_POSE = 1e6


def read_windows(folder: Path, instruction: str | None = None, *, with_sensor: bool = True) -> Recording:
    """Reads one `windows` episode; pictures and sensor arrays are listed, not read.

    instruction: prompt that replaces the episode's own. with_sensor: False leaves the sensor's file unopened.

    Raises:
        EpisodeError: a file is missing, damaged, or contradicts the metadata.
    """
    metadata = untrusted_files.read_json_object(folder / "metadata.json")
    recording = Recording(
        name=folder.resolve().name,
        format="windows",
        folder=folder,
        instruction=instruction or _instruction(metadata, folder),
    )
    with recording.collecting():
        recording.segments = _segments(metadata)
    with recording.collecting():
        recording.robot_hz = _number(metadata, "robot_hz") or recording.robot_hz
        states = _robot_states(folder, metadata)
        if states is not None:
            recording.pose_times, recording.poses = states
    with recording.collecting():
        listed = _strings(metadata.get("camera_views", []), "camera_views")
        recording.views = _listed_views(read_views(folder, "images"), listed, recording.notes)
    if with_sensor:
        with recording.collecting():
            recording.sensor = _sensor(folder, metadata)
    return recording


def _instruction(metadata: dict[str, Any], folder: Path) -> str:
    text = metadata.get("instruction")
    if text is None:
        return task_instruction(folder)
    if not isinstance(text, str) or not text.strip():
        raise EpisodeError("metadata.json: instruction is not a text")
    return text


def _strings(value: Any, key: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise EpisodeError(f"metadata.json: {key} is not a list of texts")
    return value


def _number(metadata: dict[str, Any], key: str) -> float | None:
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value) or value < 0:
        raise EpisodeError(f"metadata.json: {key} is {value!r}, expected a number"[:200])
    return float(value)


def _listed_views(found: dict[str, ViewImages], listed: list[str], notes: list[str]) -> dict[str, ViewImages]:
    """Keeps the views that the metadata lists; all of them where it lists none."""
    if not listed:
        return found
    notes += [
        f"metadata.json lists {view}, but images/{view} holds no pictures"
        for view in listed
        if view not in found
    ]
    notes += [
        f"images/{view} is not listed in metadata.json and left out" for view in found if view not in listed
    ]
    return {view: images for view, images in found.items() if view in listed}


def _segments(metadata: dict[str, Any]) -> tuple[Segment, ...]:
    segments = metadata.get("segments", [])
    try:
        found = tuple(
            Segment(str(entry["name"]), float(entry["start"]), float(entry["end"])) for entry in segments
        )
    except (TypeError, KeyError, ValueError) as error:
        raise EpisodeError("metadata.json: segments is not a list of {name, start, end}") from error
    if not all(np.isfinite([s.start, s.end]).all() and s.start <= s.end for s in found):
        raise EpisodeError("metadata.json: a segment ends before it starts")
    return found


def _robot_states(folder: Path, metadata: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    declared = _number(metadata, "robot_states_count")
    csv_path, npz_path = folder / "robot_states.csv", folder / "robot_states.npz"
    if csv_path.exists():
        path, columns = csv_path, untrusted_files.read_csv_columns(csv_path)
    elif npz_path.exists():
        path = npz_path
        columns = {
            name: member.read().astype(np.float64)
            for name, member in untrusted_files.open_npz(npz_path).items()
        }
    elif declared == 0:
        return None
    else:
        raise EpisodeError("robot_states.csv: is missing")
    times, poses = pose_columns(columns, path.name)
    if declared is not None and len(times) < declared:
        raise EpisodeError(
            f"{path.name}: has {len(times)} rows, metadata.json says {int(declared)} (truncated?)"
        )
    return times, poses


def pose_columns(columns: dict[str, np.ndarray], file: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns times (n,) and poses (n, 6) from named columns, checked. Raises EpisodeError."""
    missing = [name for name in POSE_COLUMNS if name not in columns]
    time_column = next((name for name in TIME_COLUMNS if name in columns), None)
    if missing or time_column is None:
        missing += [] if time_column else ["recv_timestamp"]
        raise EpisodeError(f"{file}: column(s) {', '.join(missing)} are missing")
    arrays = [columns[name] for name in (time_column, *POSE_COLUMNS)]
    if any(array.ndim != 1 or len(array) != len(arrays[0]) for array in arrays):
        raise EpisodeError(f"{file}: its columns have different lengths")
    times, poses = arrays[0], np.stack(arrays[1:], axis=1)
    if not len(times):
        raise EpisodeError(f"{file}: has no rows")
    if not np.isfinite(poses).all():
        row, column = np.argwhere(~np.isfinite(poses))[0]
        raise EpisodeError(f"{file}: {POSE_COLUMNS[column]} is {poses[row, column]} in row {row + 1}")
    if np.abs(poses).max() > MAX_POSE:
        row, column = np.argwhere(np.abs(poses) > MAX_POSE)[0]
        raise EpisodeError(
            f"{file}: {POSE_COLUMNS[column]} is {poses[row, column]:g} in row {row + 1}, which is absurd"
        )
    untrusted_files.check_times(times, file)
    return times, poses


def read_views(folder: Path, below: str) -> dict[str, ViewImages]:
    """Lists the pictures of each view folder under `folder / below`, ordered by the time in their names."""
    root = folder / below
    if not root.is_dir():
        return {}
    views = {}
    for view_folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        names = [entry.name for entry in view_folder.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES]
        if names:
            views[view_folder.name] = view_images(names, f"{below}/{view_folder.name}")
    return views


def view_images(names: list[str], prefix: str) -> ViewImages:
    """Orders pictures by the time in their names. Raises EpisodeError when two share one time."""
    stamped = sorted((untrusted_files.image_time(f"{prefix}/{name}"), f"{prefix}/{name}") for name in names)
    times = np.array([time for time, _ in stamped])
    untrusted_files.check_times(times, f"{prefix} (times in the file names)")
    return ViewImages(times, tuple(path for _, path in stamped))


def _sensor(folder: Path, metadata: dict[str, Any]) -> SensorRecording | None:
    path = folder / "sensor_data.npz"
    declared = _number(metadata, "sensor_windows_count")
    if not path.exists():
        if declared:
            raise EpisodeError(f"sensor_data.npz: is missing, metadata.json counts {int(declared)} windows")
        return None
    members = untrusted_files.open_npz(path)
    for name in ("data", "timestamps"):
        if name not in members:
            raise EpisodeError(f"sensor_data.npz: has no {name!r}, only {', '.join(members) or 'nothing'}")
    untrusted_files.check_sensor_shape(members["data"], 3)
    end_times = members["timestamps"].read().astype(np.float64)
    if end_times.shape != members["data"].shape[:1]:
        raise EpisodeError(
            f"sensor_data.npz: {end_times.shape} timestamps for {members['data'].shape[0]} windows"
        )
    untrusted_files.check_times(end_times, "sensor_data.npz[timestamps]")
    if declared is not None and len(end_times) < declared:
        raise EpisodeError(f"sensor_data.npz: {len(end_times)} windows, metadata.json says {int(declared)}")
    hz = _number(metadata, "sensor_hz")
    if hz == 0:
        raise EpisodeError("metadata.json: sensor_hz is 0")
    return SensorRecording(untrusted_files.WindowMember(members["data"]), end_times, hz or DEFAULT_SENSOR_HZ)
