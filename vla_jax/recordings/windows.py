"""Reads `windows` episodes: metadata.json, robot_states.csv, sensor_data.npz, images/<View>/<unix time>.jpg, and
corrections.csv, where somebody says what should have been done."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.contracts.checks import shown
from vla_jax.contracts.specs import LAB_ACTIONS, LAB_STATE
from vla_jax.recordings.clocks import check_rate
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.frame import Frame, frames_in
from vla_jax.recordings.lab import NUM_CHANNELS, SENSOR_HZ, pose_columns, task_instruction
from vla_jax.recordings.reader import EpisodeReader, NoOptions
from vla_jax.recordings.recording import Recording, Segment, Stream
from vla_jax.recordings.sensor_rows import SensorRecording, WindowMember
from vla_jax.recordings.unfinished import SENSOR_FILE, unfinished_sensor
from vla_jax.recordings.untrusted_files import check_times, read_csv_columns, read_json_object
from vla_jax.recordings.untrusted_npz import NpzMember, open_npz

MAX_WINDOW_ROWS = 100_000
SLOWEST_SENSOR_HZ, FASTEST_SENSOR_HZ = 1.0, 1e6
# Windows that share no rows fill that part of the time at least, and that many times of it at most.
MAX_GAP_RATIO = 100.0
# Of rates and counts in the metadata.
LARGEST_NUMBER = 1e12


class WindowsReader(EpisodeReader):
    """The lab's `windows` format."""

    kind = "windows"
    told_by = "metadata.json"

    def recognises(self, names: Collection[str]) -> bool:
        """By its metadata."""
        return "metadata.json" in names

    def read(self, episode: Path, options: NoOptions | None = None, *, with_sensor: bool = True) -> Recording:
        """Raises EpisodeError: the metadata is missing or damaged; other files' faults are collected."""
        metadata = read_json_object(episode / "metadata.json")
        recording = Recording(
            name=episode.resolve().name,
            format=self.kind,
            folder=episode,
            instruction=_instruction(metadata, episode),
            state_names=LAB_STATE,
        )
        if is_unfinished(metadata):
            recording.notes.append("its recording was cut off; what had been written until then is used")
        with recording.collecting():
            recording.segments = _segments(metadata)
        with recording.collecting():
            declared = _number(metadata, "robot_hz")
            recording.rate_hz = declared or recording.rate_hz
            states = _robot_states(episode, metadata)
            if states is not None:
                recording.times, recording.state = states
                if declared and len(recording.times) > 1:
                    check_rate("robot_hz", declared, float(1.0 / np.median(np.diff(recording.times))))
        with recording.collecting():
            recording.corrections = _corrections(episode)
        with recording.collecting():
            listed = listed_views(metadata)
            recording.views = _listed_views(_views(episode), listed, recording.notes)
        if with_sensor:
            with recording.collecting():
                recording.sensor = _sensor(episode, metadata)
        return recording


def listed_views(metadata: dict[str, Any]) -> list[str]:
    """Returns the views that the metadata names; [] where it names none. Raises EpisodeError."""
    views = metadata.get("camera_views", [])
    if not isinstance(views, list) or not all(isinstance(entry, str) for entry in views):
        raise EpisodeError("metadata.json: camera_views is not a list of texts")
    return views


def is_unfinished(metadata: dict[str, Any]) -> bool:
    """Whether the metadata is of an episode that is being recorded, or whose recording was cut off."""
    return metadata.get("unfinished") is True


def _instruction(metadata: dict[str, Any], folder: Path) -> str:
    text = metadata.get("instruction")
    if text is None:
        return task_instruction(folder)
    if not isinstance(text, str) or not text.strip():
        raise EpisodeError("metadata.json: instruction is not a text")
    return text


def _number(metadata: dict[str, Any], key: str) -> float | None:
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST_NUMBER:
        raise EpisodeError(f"metadata.json: {key} is {shown(value)}, expected a number")
    return float(value)


def _views(folder: Path) -> dict[str, tuple[Frame, ...]]:
    root = folder / "images"
    if not root.is_dir():
        return {}
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    found = {name: frames_in(folder, f"images/{name}") for name in names}
    return {view: frames for view, frames in found.items() if frames}


def _listed_views(
    found: dict[str, tuple[Frame, ...]], listed: list[str], notes: list[str]
) -> dict[str, tuple[Frame, ...]]:
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
    return {view: frames for view, frames in found.items() if view in listed}


def _segments(metadata: dict[str, Any]) -> tuple[Segment, ...]:
    segments = metadata.get("segments", [])
    try:
        found = tuple(
            Segment(str(entry["name"]), float(entry["start"]), float(entry["end"])) for entry in segments
        )
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise EpisodeError("metadata.json: segments is not a list of {name, start, end}") from error
    if not all(np.isfinite([s.start, s.end]).all() and s.start <= s.end for s in found):
        raise EpisodeError("metadata.json: a segment ends before it starts")
    return found


def _robot_states(folder: Path, metadata: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    declared = _number(metadata, "robot_states_count")
    csv_path, npz_path = folder / "robot_states.csv", folder / "robot_states.npz"
    if csv_path.exists():
        path, columns = csv_path, read_csv_columns(csv_path, is_cut_off=is_unfinished(metadata))
    elif npz_path.exists():
        path = npz_path
        columns = {name: member.read().astype(np.float64) for name, member in open_npz(npz_path).items()}
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


def _corrections(folder: Path) -> Stream | None:
    path = folder / "corrections.csv"
    if not path.exists():
        return None
    columns = read_csv_columns(path, LAB_ACTIONS.names)
    wanted = ("recv_timestamp", *LAB_ACTIONS.names)
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise EpisodeError(f"{path.name}: column(s) {', '.join(missing)} are missing")
    times, *values = (columns[name] for name in wanted)
    actions = np.stack(values, axis=1)
    if not np.isfinite(actions).all():
        row, column = np.argwhere(~np.isfinite(actions))[0]
        raise EpisodeError(
            f"{path.name}: {LAB_ACTIONS.names[column]} is {actions[row, column]} in row {row + 1}"
        )
    check_times(times, path.name)
    return Stream(times, actions)


def _sensor(folder: Path, metadata: dict[str, Any]) -> SensorRecording | None:
    path = folder / "sensor_data.npz"
    declared = _number(metadata, "sensor_windows_count")
    if not path.exists():
        if is_unfinished(metadata):
            return unfinished_sensor(folder / SENSOR_FILE)
        if declared:
            raise EpisodeError(f"sensor_data.npz: is missing, metadata.json counts {int(declared)} windows")
        return None
    members = open_npz(path)
    for name in ("data", "timestamps"):
        if name not in members:
            raise EpisodeError(f"sensor_data.npz: has no {name!r}, only {', '.join(members) or 'nothing'}")
    _check_windows(members["data"])
    end_times = members["timestamps"].read().astype(np.float64)
    if end_times.shape != members["data"].shape[:1]:
        raise EpisodeError(
            f"sensor_data.npz: {end_times.shape} timestamps for {members['data'].shape[0]} windows"
        )
    check_times(end_times, "sensor_data.npz[timestamps]")
    if declared is not None and len(end_times) < declared:
        raise EpisodeError(f"sensor_data.npz: {len(end_times)} windows, metadata.json says {int(declared)}")
    hz = _number(metadata, "sensor_hz")
    if hz is not None:
        _check_sensor_rate(hz, members["data"], end_times)
    return SensorRecording(WindowMember(members["data"]), end_times, SENSOR_HZ if hz is None else hz)


def _check_sensor_rate(hz: float, windows: NpzMember, end_times: np.ndarray) -> None:
    """Refuses a rate that is not that of overlapping windows, or at which windows that share no rows would fill a
    hundredth of the time, or a hundred times of it.

    Raises:
        EpisodeError: names both rates.
    """
    if not SLOWEST_SENSOR_HZ <= hz <= FASTEST_SENSOR_HZ:
        raise EpisodeError(
            f"metadata.json: sensor_hz is {hz:.6g}, expected {SLOWEST_SENSOR_HZ:g} to {FASTEST_SENSOR_HZ:g}"
        )
    if len(end_times) < 2:
        return
    first, second = next(windows.blocks(2))[:2]
    num_rows = len(first)
    # Where windows overlap, the second repeats the end of the first from some row on.
    same = np.flatnonzero((first[1:] == second[0]).all(axis=1)) + 1
    shift = next((k for k in same.tolist() if np.array_equal(first[k:], second[: num_rows - k])), num_rows)
    if num_rows > 1 and np.array_equal(first[-2], first[-1]):  # Rows that do not change overlap anywhere.
        shift = num_rows
    measured = shift / float(np.median(np.diff(end_times)))
    if shift < num_rows:
        check_rate("sensor_hz", hz, measured)
    elif not measured / MAX_GAP_RATIO <= hz <= MAX_GAP_RATIO * measured:
        raise EpisodeError(
            f"metadata.json: sensor_hz is {hz:.6g}, but {measured:.3g} rows a second were recorded"
        )


def _check_windows(member: NpzMember) -> None:
    where = f"{member.path.name}[{member.member.removesuffix('.npy')}]"
    if len(member.shape) != 3 or member.shape[-1] != NUM_CHANNELS:
        raise EpisodeError(
            f"{where}: has shape {member.shape}, expected (N, W, {NUM_CHANNELS}): the force and 1025 A-scan bins"
        )
    if member.shape[1] > MAX_WINDOW_ROWS:
        raise EpisodeError(f"{where}: windows of {member.shape[1]} rows are absurdly long")
    if 0 in member.shape:
        raise EpisodeError(f"{where}: holds no rows")
    if member.dtype.kind != "f":
        raise EpisodeError(f"{where}: holds {member.dtype}, expected floating point numbers")
