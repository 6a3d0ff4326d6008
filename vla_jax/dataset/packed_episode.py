"""One episode, packed: validated, aligned, and ready to be joined with others into a data set.

On disk it is a folder with `sensor.bin` (raw rows), `arrays.npz` (the columns of `vla_jax.dataset.schema` that are not
made on joining) and `episode.json`; it is complete or absent.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SENSOR_FILE = "sensor.bin"
ARRAYS_FILE = "arrays.npz"
INFO_FILE = "episode.json"


@dataclass(frozen=True)
class EpisodeInfo:
    """What an episode's columns do not say; all fields are JSON values.

    views: sorted; images: locators of its pictures (`vla_jax.recordings.frame.Frame`), view after view, and
    images_per_view how many each has. state_names: [] where no state was recorded. pose_hz: of the state, measured;
    sensor_hz: as recorded; None where there is nothing of the kind. For in_whole_chunks see
    `vla_jax.recordings.recording.Recording`.
    """

    name: str
    format: str
    instruction: str
    confidence: float
    segments: list[dict[str, Any]]
    views: list[str]
    images: list[str]
    images_per_view: list[int]
    sensor_rows: int
    sensor_channels: int
    sensor_hz: float | None
    pose_hz: float | None
    state_names: list[str]
    action_names: list[str]
    action_units: list[str]
    in_whole_chunks: bool
    fingerprint: str
    notes: list[str]


@dataclass(frozen=True)
class PackedEpisode:
    """info: what it is; arrays: its columns by name; row numbers in them count from the episode's own beginnings.

    sensor_file: where its `info.sensor_rows` sensor rows lie, raw, from byte `sensor_offset`; None without any.
    """

    info: EpisodeInfo
    arrays: dict[str, np.ndarray]
    sensor_file: Path | None = None
    sensor_offset: int = 0


def write_packed(directory: Path, info: EpisodeInfo, arrays: dict[str, np.ndarray]) -> None:
    """Writes a packed episode's columns and description beside its sensor rows."""
    np.savez(directory / ARRAYS_FILE, allow_pickle=False, **arrays)
    (directory / INFO_FILE).write_text(json.dumps(asdict(info)), encoding="utf-8")


def load_packed(directory: Path) -> PackedEpisode | None:
    """Reads what `write_packed` wrote; None where there is nothing, or nothing complete."""
    if not (directory / INFO_FILE).is_file():
        return None
    info = EpisodeInfo(**json.loads((directory / INFO_FILE).read_text(encoding="utf-8")))
    with np.load(directory / ARRAYS_FILE, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return PackedEpisode(info, arrays, directory / SENSOR_FILE if info.sensor_rows else None)
