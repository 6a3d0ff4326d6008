"""One recorded episode in memory, whatever format it was read from, and what can be wrong with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

NUM_CHANNELS = 1026
"""Sensor channels: the force, then 1025 A-scan depth bins."""

POSE_DIM = 6
ACTION_DIM = 7
GRIPPER = 1.0

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class EpisodeError(Exception):
    """What makes one episode unusable; the message names the file, relative to the episode's folder."""


@dataclass(frozen=True)
class Finding:
    """A remark on one episode: a fault leaves it out of the data set, a note does not."""

    episode: str
    reason: str
    is_fault: bool = True


@dataclass(frozen=True)
class Segment:
    """A named stretch of an episode, in unix seconds, both ends included."""

    name: str
    start: float
    end: float


class SensorRows(Protocol):
    """The sensor arrays of one episode on disk, read in blocks."""

    file: str
    num_windows: int
    window_rows: int
    dtype: np.dtype

    def blocks(self, rows_per_block: int) -> Iterator[np.ndarray]:
        """Yields (n, window_rows, NUM_CHANNELS) arrays, in order, at least one window each."""


@dataclass(frozen=True)
class SensorRecording:
    """Sensor windows and the time of each window's last row; single rows are windows of one row."""

    rows: SensorRows
    end_times: np.ndarray
    hz: float


@dataclass(frozen=True)
class ViewImages:
    """The pictures of one view. times: (m,) f64, ascending; paths: relative to the episode's folder.

    A path of None stands for a picture that the recording itself marks as missing.
    """

    times: np.ndarray
    paths: tuple[str | None, ...]


@dataclass
class Recording:
    """One episode as recorded.

    pose_times: (n,) f64 unix seconds; poses: (n, 6) f64, mm and degrees. Both None when nothing moved.
    actions: (n, 7) f32, one per `pose_times`; only where the recording holds deltas and no poses (legacy).
    robot_hz: nominal rate of the poses; only the reference's pairing by index uses it.
    confidence: weight of its samples in training.
    """

    name: str
    format: str
    folder: Path
    instruction: str
    pose_times: np.ndarray | None = None
    poses: np.ndarray | None = None
    actions: np.ndarray | None = None
    robot_hz: float = 100.0
    views: dict[str, ViewImages] = field(default_factory=dict)
    sensor: SensorRecording | None = None
    segments: tuple[Segment, ...] = ()
    confidence: float = 1.0
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Notes an `EpisodeError` of its block as a fault and goes on, so that all faults of an episode are found."""
        try:
            yield
        except EpisodeError as error:
            self.faults.append(str(error))


def task_instruction(folder: Path) -> str:
    """Returns the prompt for an episode that names none: the reference's sentence about its task folder."""
    task = folder.resolve().parent.name.replace("_", " ").strip()
    return f"Perform {task} insertion task."
