"""Reads `capture` episodes: raw recordings robot_state_*.csv, sensor_data_*.npz and View*/[left|right/]*.jpg."""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from vla_jax.contracts.specs import LAB_STATE
from vla_jax.errors import UserError
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.frame import Frame, frame_times, frames_in
from vla_jax.recordings.lab import NUM_CHANNELS, SENSOR_HZ, pose_columns, task_instruction
from vla_jax.recordings.reader import EpisodeReader
from vla_jax.recordings.recording import Recording
from vla_jax.recordings.sensor_rows import RowMembers, SensorRecording
from vla_jax.recordings.untrusted_files import check_times, read_csv_columns
from vla_jax.recordings.untrusted_npz import open_npz

POSE_FILES = "robot_state_*.csv"
SENSOR_FILES = "sensor_data_*.npz"
FORCE_NAMES = ("forces", "force")
ASCAN_NAMES = ("alines", "aline")


@dataclass(frozen=True)
class CaptureOptions:
    """Settings of the `capture` reader."""

    match_limit_ms: float = 10.0
    """Drop a capture's picture that is further than this from every pose, in milliseconds; they are counted."""

    def __post_init__(self) -> None:
        if not 0 <= self.match_limit_ms < math.inf:
            raise UserError(
                f"--match-limit-ms {self.match_limit_ms:g} is impossible; give a number of milliseconds, 0 or more"
            )


class CaptureReader(EpisodeReader):
    """The lab's raw recordings."""

    kind = "capture"
    told_by = f"{POSE_FILES} or {SENSOR_FILES}"
    options = CaptureOptions

    def recognises(self, names: Collection[str]) -> bool:
        """By a file of poses or of sensor rows."""
        return any(fnmatchcase(name, pattern) for name in names for pattern in (POSE_FILES, SENSOR_FILES))

    def read(
        self, episode: Path, options: CaptureOptions = CaptureOptions(), *, with_sensor: bool = True
    ) -> Recording:
        """Faults are all collected: of damaged files, and where there are several but one is expected."""
        recording = Recording(
            name=episode.resolve().name,
            format=self.kind,
            folder=episode,
            instruction=task_instruction(episode),
            state_names=LAB_STATE,
        )
        with recording.collecting():
            path = _only_file(episode, POSE_FILES)
            if path is not None:
                recording.times, recording.state = pose_columns(read_csv_columns(path), path.name)
        with recording.collecting():
            recording.views = _matched(_views(episode), recording, options.match_limit_ms / 1000)
        if with_sensor:
            with recording.collecting():
                path = _only_file(episode, SENSOR_FILES)
                if path is not None:
                    recording.sensor = _sensor(path, recording.notes)
        return recording


def _only_file(folder: Path, pattern: str) -> Path | None:
    found = sorted(folder.glob(pattern))
    if len(found) > 1:
        raise EpisodeError(f"{pattern}: {len(found)} such files, expected one per recording")
    return found[0] if found else None


def _views(folder: Path) -> dict[str, tuple[Frame, ...]]:
    """Lists the pictures of View*/ and View*/left, View*/right; the latter become views View1_left, View1_right."""
    views = {}
    for view_folder in sorted(folder.iterdir()):
        if not view_folder.is_dir() or not re.fullmatch(r"[Vv]iew\w*", view_folder.name):
            continue
        for side in ("", "left", "right"):
            place = "/".join(filter(None, (view_folder.name, side)))
            frames = frames_in(folder, place) if (folder / place).is_dir() else ()
            if frames:
                views[place.replace("/", "_")] = frames
    return views


def _matched(
    views: dict[str, tuple[Frame, ...]], recording: Recording, limit: float
) -> dict[str, tuple[Frame, ...]]:
    if recording.times is None:
        return views
    matched, num_dropped, num_all = {}, 0, 0
    for view, frames in views.items():
        keep = distance_to_nearest(recording.times, frame_times(frames)) <= limit
        num_all += len(keep)
        num_dropped += int((~keep).sum())
        if keep.any():
            matched[view] = tuple(frame for frame, kept in zip(frames, keep, strict=True) if kept)
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
    members = open_npz(path)
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
    check_times(times, f"{path.name}[timestamps]")
    return SensorRecording(RowMembers(force, ascan), times, SENSOR_HZ)
