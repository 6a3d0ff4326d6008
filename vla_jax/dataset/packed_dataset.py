"""The packed data set: memory-mapped arrays that open in milliseconds and are read without copying.

```
DATA/dataset.json            format version, settings, spec, name of the content folder; replaced atomically
DATA/<content>/              complete or absent; named by a digest of what it was made from
    episodes.json            one object per episode: split, row ranges, fingerprint of its files, notes
    statistics.json          float64 statistics of the training split
    <column>.npy             the columns of `vla_jax.dataset.schema`, and those that were registered
    sensor.npy               (R, C), float16 or float32: force, A-scan bins; episodes one after another
    image_path image_start   u8 text and (M + 1,) i64 offsets: where each picture is, told to its episode's reader
    histogram_start          (E + 1,) i64: each episode's bins
```

float16 holds A-scan values up to 290 within 0.125 (at most 0.05 % of the value); float32 keeps them exactly.
A tick is a sample when its features can exist, that is when a picture was taken at or before its refresh tick.
"""

import hashlib
import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy.lib.stride_tricks import sliding_window_view

from vla_jax.contracts.specs import Alignment, StateWindow
from vla_jax.dataset.meaning import spec_from_json, spec_to_json
from vla_jax.dataset.records import Records, VLRecord
from vla_jax.dataset.schema import COLUMNS, Column
from vla_jax.dataset.statistics import FeatureStatistics, statistics_from_json
from vla_jax.dataset.upgrade import OLD_VERSION, upgraded_entries, upgraded_index
from vla_jax.errors import UserError
from vla_jax.recordings.recording import Segment
from vla_jax.recordings.registry import reader_of
from vla_jax.timing import chunk_rows, is_whole_window, past_rows, window_rows

FORMAT_VERSION = 3
INDEX_FILE = "dataset.json"
# Pages of a larger stream are given back each time as much has been read.
MAX_MAPPED_BYTES = 192 << 20

Split = Literal["train", "val", "all"]


@dataclass(frozen=True)
class PackedMeta:
    """Settings a data set was packed with. views: all views of all episodes, sorted."""

    format_version: int
    action_hz: float
    horizon: int
    alignment: Alignment
    vlm_reuse_count: int
    sensor_window_size: int
    sensor_hz: float
    views: tuple[str, ...]
    sensor_dtype: str


@dataclass(frozen=True)
class EpisodeEntry:
    """One episode of a data set. Ticks and sensor rows are ranges of the data set's arrays, stop excluded.

    instruction: its prompt; weight: how often its samples are drawn in training, relative to the others.
    pose_hz: measured; sensor_hz: as recorded in the metadata; None where there is nothing of the kind.
    """

    name: str
    source: str
    path: str
    format: str
    split: Split
    instruction: str
    tick_start: int
    tick_stop: int
    sensor_start: int
    sensor_stop: int
    has_sensor: bool
    has_images: bool
    confidence: float
    weight: float
    pose_hz: float | None
    sensor_hz: float | None
    segments: tuple[Segment, ...]
    notes: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True)
class Ticks:
    """Memory maps with one row per control tick, see `vla_jax.dataset.schema`.

    pose is NaN where only actions were recorded. columns: the registered ones the data set was prepared with.
    """

    time: np.ndarray
    pose: np.ndarray
    delta: np.ndarray
    sensor_begin: np.ndarray
    sensor_end: np.ndarray
    sensor_time: np.ndarray
    instant: np.ndarray
    record: np.ndarray
    episode: np.ndarray
    is_sample: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.time)


class PackedDataset:
    """A data set that `python -m experiments.prepare` wrote. Build it with `open`.

    spec: what a sample means. columns: the registered columns it was prepared with.
    index, raw_episodes: what its JSON files hold.
    """

    def __init__(
        self, path: Path, index: dict[str, Any], entries: list[dict[str, Any]], statistics: dict[str, Any]
    ) -> None:
        self.path = path
        self.content = path / index["content"]
        self.index = index
        self.meta = PackedMeta(**(index["meta"] | {"views": tuple(index["meta"]["views"])}))
        self.spec = spec_from_json(index["spec"], str(path / INDEX_FILE))
        self.raw_episodes = entries
        self.episodes: tuple[EpisodeEntry, ...] = tuple(map(_episode_entry, entries))
        self.statistics: dict[str, FeatureStatistics] = statistics_from_json(statistics)
        self.columns = tuple(map(Column.from_json, index["columns"]))
        self.ticks = Ticks(
            **{column.name: self.array(column.name) for column in COLUMNS if column.per == "tick"},
            columns={column.name: self.array(column.name) for column in self.columns},
        )
        self.sensor, self._sensor_map = _map_sensor(self.content / "sensor.npy")
        self._bytes_since_release = 0
        num_ticks = self.episodes[-1].tick_stop if self.episodes else 0
        num_rows = self.episodes[-1].sensor_stop if self.episodes else 0
        if len(self.ticks) != num_ticks or self.sensor.ndim != 2 or len(self.sensor) != num_rows:
            raise UserError(f"{path}: damaged, its arrays do not fit its episodes; run prepare again")

    @classmethod
    def open(cls, path: str | Path) -> "PackedDataset":
        """Opens a packed data set; arrays are mapped, not read.

        Raises:
            UserError: nothing is there, it is no packed data set, unfinished, damaged, or of another version.
        """
        path = Path(path)
        if not path.is_dir():
            raise UserError(
                f"{path}: no such data set; make one with `python -m experiments.prepare SOURCE --out {path}`"
            )
        if not (path / INDEX_FILE).is_file():
            raise UserError(
                f"{path}: holds no packed data set ({INDEX_FILE} is missing); make one with "
                f"`python -m experiments.prepare SOURCE --out DATA` and give DATA here"
            )
        index = _read_json(path / INDEX_FILE)
        version = index.get("format_version") if isinstance(index, dict) else None
        if version not in (OLD_VERSION, FORMAT_VERSION):
            raise UserError(
                f"{path}: is a data set of version {version}, this program reads {FORMAT_VERSION}; run prepare again"
            )
        try:
            content = path / index["content"]
            entries = _read_json(content / "episodes.json")
            statistics = _read_json(content / "statistics.json")
            if version == OLD_VERSION:
                index, entries = upgraded_index(index, FORMAT_VERSION), upgraded_entries(entries)
                index["spec"] = spec_to_json(index["meta"], entries, statistics)
            return cls(path, index, entries, statistics)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(f"{path}: damaged data set ({error}); run prepare again") from error

    def array(self, name: str) -> np.ndarray:
        """Maps one of the arrays that the module's text lists."""
        file = self.content / f"{name}.npy"
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        # A plain view of the map: np.memmap's own indexing costs several microseconds a call.
        return np.asarray(array)

    def describe(self) -> dict[str, Any]:
        """Returns JSON values that identify the data set: path, content name, settings and sizes."""
        return {
            "path": str(self.path),
            "content": self.index["content"],
            "samples": self._identity,
            "meta": self.index["meta"],
            "spec": self.index["spec"],
            "episodes": len(self.episodes),
            "train_samples": len(self.sample_ticks("train")),
            "val_samples": len(self.sample_ticks("val")),
        }

    @property
    def _identity(self) -> str:
        """Digest of what its samples are, wherever it and its episodes lie."""
        members = [
            [entry.fingerprint, entry.split, entry.instruction, entry.weight] for entry in self.episodes
        ]
        text = json.dumps([self.index["meta"], self.index["episode_options"], members], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check_sources(self) -> list[str]:
        """Returns one line per episode whose recorded files have changed or gone since it was packed.

        Compares names, sizes and modification times; reads no file.
        """
        changes = []
        for index, entry in enumerate(self.episodes):
            folder, reader = self.folder(index), reader_of(entry.format)
            if not reader.is_there(folder):
                changes.append(f"{entry.path}: is gone")
            elif reader.fingerprint(folder) != entry.fingerprint:
                changes.append(f"{entry.path}: has changed")
        return changes

    def folder(self, episode: int) -> Path:
        """Returns where an episode's recording lies: where it was packed from, else beside the moved data set."""
        raw = self.raw_episodes[episode]
        absolute = Path(raw["absolute_path"])
        is_there = reader_of(raw["format"]).is_there(absolute)
        return absolute if is_there else self.path / raw["relative_path"]

    def image_times(self, episode: int) -> dict[str, np.ndarray]:
        """Returns when each view's pictures of an episode were taken: view → (m,) f64 unix seconds."""
        raw = self.raw_episodes[episode]
        times = self.array("image_time")[raw["image_start"] : raw["image_stop"]]
        bounds = np.cumsum(raw["images_per_view"])[:-1]
        return dict(zip(raw["views"], np.split(times, bounds), strict=True)) if raw["views"] else {}

    # --- samples ---

    def sample_ticks(self, split: Split) -> np.ndarray:
        """Returns the int64 tick rows that are samples of a split, ascending."""
        if split not in ("train", "val", "all"):
            raise UserError(f"unknown split {split!r}; choose train, val or all")
        wanted = np.array([split in ("all", entry.split) for entry in self.episodes], bool)
        return np.flatnonzero(self.ticks.is_sample & (self.ticks.record >= 0) & wanted[self.ticks.episode])

    def actions(self, ticks: np.ndarray) -> np.ndarray:
        """Returns action chunks (n, horizon, a) f32 in the spec's units; the episode's last action is repeated."""
        rows = chunk_rows(np.asarray(ticks), self._last_tick[self.ticks.episode[ticks]], self.meta.horizon)
        return self.ticks.delta[rows]

    def previous_action(self, ticks: np.ndarray) -> np.ndarray:
        """Returns (n, a) f32: the action of the tick before; at an episode's start `ActionSpec.before_first`."""
        ticks = np.asarray(ticks)
        is_first = ticks == self._first_tick[self.ticks.episode[ticks]]
        previous = self.ticks.delta[np.maximum(ticks - 1, 0)]
        return np.where(is_first[:, None], self.spec.actions.before_first, previous)

    def state_windows(
        self, ticks: np.ndarray, window: StateWindow
    ) -> tuple[Float[np.ndarray, "n w p"], Bool[np.ndarray, "n w"]]:
        """Returns the last states up to each tick as f32, oldest first, and which of them were recorded in its episode;
        the others repeat the tick's own."""
        ticks = np.asarray(ticks)
        first = self._first_tick[self.ticks.episode[ticks]]
        rows = past_rows(ticks, first, window.rows, window.every)
        states = np.asarray(self.ticks.pose[np.where(rows >= 0, rows, ticks[:, None])], np.float32)
        return states, (rows >= 0) & np.isfinite(states).all(axis=2)

    def sensor_windows(self, ticks: np.ndarray, size: int | None = None) -> np.ndarray:
        """Returns (n, size, C) in the storage type: the newest rows at each tick, `size` as packed by default.

        Rows before the recording's start (or before a gap) repeat its first row; zeros where there is no sensor.
        """
        ticks = np.asarray(ticks)
        size = size or self.meta.sensor_window_size
        num_channels = self.sensor.shape[1]
        begin, end = self.ticks.sensor_begin[ticks], self.ticks.sensor_end[ticks]
        is_whole = is_whole_window(begin, end, size)
        if is_whole.any():
            # Windows as they lie in the stream: one copy of many bytes each, where rows would be many small ones.
            in_place = sliding_window_view(self.sensor, (size, num_channels))[:, 0]
            windows = in_place[np.where(is_whole, end - size, 0)]
        else:
            windows = np.empty((len(ticks), size, num_channels), self.sensor.dtype)
        windows[end < 0] = 0
        short = np.flatnonzero(~is_whole & (end >= 0))
        for i, rows in zip(short.tolist(), window_rows(begin[short], end[short], size), strict=True):
            windows[i] = self.sensor[rows]
        self._release_pages(windows.nbytes)
        return windows

    def sensor_rows(self, ticks: np.ndarray) -> np.ndarray:
        """Returns (n, 2) i32: the rows [begin, end) of `sensor` that a tick's window may use; −1 without sensor."""
        return np.stack([self.ticks.sensor_begin[ticks], self.ticks.sensor_end[ticks]], axis=1).astype(
            np.int32
        )

    def _release_pages(self, num_bytes: int) -> None:
        """Gives a large stream's pages back from time to time; they stay cached, but no longer count as ours."""
        self._bytes_since_release += num_bytes
        if self.sensor.nbytes > MAX_MAPPED_BYTES and self._bytes_since_release > MAX_MAPPED_BYTES:
            self._bytes_since_release = 0
            self._sensor_map.madvise(mmap.MADV_DONTNEED)

    def has_sensor(self, ticks: np.ndarray) -> np.ndarray:
        """Returns bool (n,): whether a tick has sensor rows."""
        return self.ticks.sensor_end[ticks] >= 0

    def confidence(self, ticks: np.ndarray) -> np.ndarray:
        """Returns (n,) f32, the weight of each sample's episode."""
        return self._confidence[self.ticks.episode[ticks]]

    def segment_mask(self, name: str, ticks: np.ndarray) -> np.ndarray:
        """Returns bool (n,): whether a tick's time lies in a segment of that name of its episode."""
        times, episodes = self.ticks.time[ticks], self.ticks.episode[ticks]
        mask = np.zeros(len(times), bool)
        for index, entry in enumerate(self.episodes):
            for segment in entry.segments:
                if segment.name == name:
                    mask |= (episodes == index) & (times >= segment.start) & (times <= segment.end)
        return mask

    def batch_columns(self, ticks: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the registered columns that batches carry, at some ticks: name → (n, *shape); {} without any."""
        return {
            column.name: self.ticks.columns[column.name][ticks]
            for column in self.columns
            if column.in_batches
        }

    # --- vision-language records ---

    def record_index(self, ticks: np.ndarray) -> np.ndarray:
        """Returns (n,) int64: the record of the newest refresh at each tick, −1 where there is none."""
        return self.ticks.record[ticks].astype(np.int64)

    def required_records(self) -> np.ndarray:
        """Returns the ascending indices of the records that some sample needs."""
        return np.unique(self.record_index(self.sample_ticks("all")))

    @cached_property
    def records(self) -> Sequence[VLRecord]:
        """The records, one per camera instant, made when asked for."""
        return Records(self)

    @cached_property
    def record_views(self) -> np.ndarray:
        """(records, views) bool: which views each record has."""
        return self.array("instant_images") >= 0

    @cached_property
    def record_time(self) -> Float[np.ndarray, " records"]:
        """When the oldest of each record's pictures was taken, unix seconds; ascending within an episode that is
        aligned by time."""
        # A row of its own for "no picture", which −1 points at.
        taken = np.append(self.array("image_time"), np.inf)
        return taken[self.array("instant_images")].min(axis=1, initial=np.inf)

    @cached_property
    def _first_tick(self) -> np.ndarray:
        return np.array([entry.tick_start for entry in self.episodes], np.int64)

    @cached_property
    def _last_tick(self) -> np.ndarray:
        return np.array([entry.tick_stop - 1 for entry in self.episodes], np.int64)

    @cached_property
    def _confidence(self) -> np.ndarray:
        return np.array([entry.confidence for entry in self.episodes], np.float32)


def _map_sensor(path: Path) -> tuple[np.ndarray, mmap.mmap]:
    """Maps the stream (R, C), and returns the map beside it, so that its pages can be released."""
    with open(path, "rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{path.name}: unknown version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        count = int(np.prod(shape))
        return np.frombuffer(mapped, dtype, count, offset=file.tell()).reshape(shape), mapped


def _episode_entry(raw: dict[str, Any]) -> EpisodeEntry:
    names = EpisodeEntry.__dataclass_fields__
    values = {name: raw[name] for name in names}
    values["segments"] = tuple(Segment(**segment) for segment in raw["segments"])
    values["notes"] = tuple(raw["notes"])
    return EpisodeEntry(**values)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged data set ({error}); run prepare again") from error
