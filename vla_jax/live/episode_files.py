"""The files of one `windows` episode while it is recorded: whatever ends the recording, they can be read.

metadata.json says `unfinished` until the end; until then the sensor's rows are appended to sensor_rows.bin, and at the
end become sensor_data.npz (`vla_jax.recordings.unfinished`).
"""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float

from vla_jax.recordings.lab import POSE_COLUMNS
from vla_jax.recordings.unfinished import SENSOR_FILE, SENSOR_RECORD, appended_rows
from vla_jax.storage.replacing import replace_file, replace_text

STATE_COLUMNS = (
    "recv_timestamp",
    "origin_timestamp",
    "send_timestamp",
    *(f"joint_{i}" for i in range(1, 7)),
    *POSE_COLUMNS,
)
"""The first is when the state was, on our clock; the other two are the robot's own stamps."""
COMMAND_COLUMNS = ("timestamp", "dx", "dy", "dz", "da", "db", "dr")


class EpisodeFiles:
    """One episode's folder, made anew. metadata: what the finished episode's will hold, as far as it is known."""

    def __init__(self, folder: Path, metadata: dict[str, Any]) -> None:
        """Raises FileExistsError, or another OSError."""
        folder.mkdir(parents=True)
        self.folder = folder
        self.num_states = self.num_rows = 0
        self._metadata = metadata
        self._views: dict[str, set[str]] = {}
        self._states = self._appended("robot_states.csv", STATE_COLUMNS)
        self._commands: BinaryIO | None = None
        self._sensor: BinaryIO | None = None
        self._is_told = False

    def add_states(self, times: Float[np.ndarray, " n"], states: Sequence[Float[np.ndarray, " c"]]) -> None:
        """Appends states: times ascending, then the other columns."""
        for time, values in zip(times, states, strict=True):
            numbers = ",".join(f"{value:.6f}" for value in (time, *values))
            self._states.write(numbers.encode() + b"\n")
        self.num_states += len(times)

    def add_rows(self, times: Float[np.ndarray, " n"], rows: Sequence[np.ndarray]) -> None:
        """Appends sensor rows: times ascending."""
        if not len(times):
            return
        if self._sensor is None:
            self._sensor = (self.folder / SENSOR_FILE).open("xb")
        records = np.empty(len(times), SENSOR_RECORD)
        records["time"], records["row"] = times, rows
        self._sensor.write(records.tobytes())
        self.num_rows += len(times)

    def add_picture(self, view: str, time: float, jpeg: bytes) -> bool:
        """Writes a picture; False where the view has one of this time."""
        name = f"{time:.6f}.jpg"
        if view not in self._views:
            (self.folder / "images" / view).mkdir(parents=True)
            self._views[view] = set()
        if name in self._views[view]:
            return False
        self._views[view].add(name)
        replace_file(self.folder / "images" / view / name, lambda handle: handle.write(jpeg))
        return True

    def add_command(self, time: float, action: Sequence[float]) -> None:
        """Appends what was sent to the arm, for people: `prepare` learns from the poses."""
        if self._commands is None:
            self._commands = self._appended("commands.csv", COMMAND_COLUMNS)
        numbers = ",".join(f"{value:.6f}" for value in (time, *action[:6]))
        self._commands.write(numbers.encode() + b"\n")

    def sync(self) -> None:
        """Brings everything to the disk. With its first states the folder becomes an episode."""
        for file in self._open_files():
            file.flush()
            os.fsync(file.fileno())
        if self.num_states and not self._is_told:
            self._tell({**self._metadata, "unfinished": True})
            self._is_told = True
            _sync_folder(self.folder.parent)
        for folder in (self.folder, *(self.folder / "images" / view for view in self._views)):
            _sync_folder(folder)

    def finish(self, **more: Any) -> None:
        """Makes it an ordinary episode. more: of its metadata."""
        self.sync()
        for file in self._open_files():
            file.close()
        appended = self.folder / SENSOR_FILE
        if self._sensor is not None:
            records = appended_rows(appended)
            windows = records["row"][:, None]  # Of one row each, so that every row keeps its own time.
            replace_file(
                self.folder / "sensor_data.npz",
                lambda handle: np.savez(handle, data=windows, timestamps=records["time"]),
            )
        self._tell(
            {
                **self._metadata,
                **more,
                "camera_views": sorted(self._views),
                "camera_frames_count": max(map(len, self._views.values()), default=0),
                "sensor_windows_count": self.num_rows,
                "robot_states_count": self.num_states,
            }
        )
        appended.unlink(missing_ok=True)
        _sync_folder(self.folder)

    def abandon(self) -> None:
        """Leaves it as it is on the disk."""
        for file in self._open_files():
            with contextlib.suppress(OSError):  # What is still to be written does not fit either.
                file.close()

    def _open_files(self) -> list[BinaryIO]:
        return [file for file in (self._states, self._sensor, self._commands) if file is not None]

    def _tell(self, metadata: dict[str, Any]) -> None:
        replace_text(self.folder / "metadata.json", json.dumps(metadata, indent=2) + "\n")

    def _appended(self, name: str, columns: Sequence[str]) -> BinaryIO:
        file = (self.folder / name).open("xb")
        file.write(",".join(columns).encode() + b"\n")
        return file


def _sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
