"""What a data set's `meta/` says: its features, tasks and episodes, and the files in which they lie."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.lerobot.paths import file_in, fill_template
from vla_jax.recordings.lerobot.tables import read_table, require_libraries
from vla_jax.recordings.untrusted_files import MAX_TEXT_BYTES, check_ordinary, read_json_object

INFO_FILE = "meta/info.json"
MAX_INFO_BYTES = 16 << 20
MAX_FEATURES = 2000
MAX_ROW_NUMBERS = 1 << 26
PICTURE_DTYPES = ("video", "image")


@dataclass(frozen=True)
class Feature:
    """One column, or the pictures of one camera. names: one for each number, where they are known."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_picture(self) -> bool:
        """Whether it is a camera's."""
        return self.dtype in PICTURE_DTYPES

    @property
    def is_numbers(self) -> bool:
        """Whether its rows are numbers."""
        return self.dtype not in (*PICTURE_DTYPES, "string")

    @property
    def size(self) -> int:
        """Numbers in a row."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def dim_names(self) -> tuple[str, ...]:
        """A name for each number of a row."""
        own = self.key.rpartition(".")[2]
        return self.names or tuple(f"{own}_{i}" for i in range(self.size))

    @property
    def view(self) -> str:
        """Name of a camera's view: `observation.images.NAME` without what all have."""
        return (
            self.key.removeprefix("observation.images.").removeprefix("observation.image.").replace("/", "_")
        )


@dataclass(frozen=True)
class EpisodePlace:
    """Where one episode lies. file: of its rows, relative to the data set, in which it begins at row `first_row`.

    videos: camera → its file and the second in it at which the episode begins.
    """

    number: int
    length: int
    tasks: tuple[str, ...]
    file: str
    first_row: int
    videos: Mapping[str, tuple[str, float]]


@dataclass(frozen=True)
class DataSetIndex:
    """A data set's description. tasks: number → text."""

    folder: Path
    version: str
    fps: float
    features: Mapping[str, Feature]
    tasks: Mapping[int, str]
    episodes: Mapping[int, EpisodePlace]

    @property
    def cameras(self) -> tuple[Feature, ...]:
        """The features that are pictures."""
        return tuple(feature for feature in self.features.values() if feature.is_picture)


def is_data_set(folder: Path) -> bool:
    """Tells whether the folder's `meta/info.json` is that of a LeRobot data set: other formats may have one, too."""
    try:
        return b"codebase_version" in _head(folder / INFO_FILE)
    except OSError:
        return False


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 16) if path.is_file() else b""


def open_index(folder: Path) -> DataSetIndex:
    """Reads the description of a data set; once for as long as its files stay what they are.

    Raises:
        EpisodeError: it is damaged, says impossible things, or is of another version.
        UserError: the libraries for such data sets are not installed.
    """
    require_libraries()
    stamps = []
    for pattern in ("meta/*", "meta/episodes/*/*"):
        for path in sorted(folder.glob(pattern)):
            status = path.stat() if path.exists() else path.lstat()
            stamps.append((str(path), status.st_size, status.st_mtime_ns))
    try:
        return _read_index(folder, tuple(stamps))
    except OSError as error:
        raise EpisodeError(f"meta: cannot be read ({error.strerror or error})") from error


@lru_cache(maxsize=8)
def _read_index(folder: Path, stamps: tuple[Any, ...]) -> DataSetIndex:
    info = read_json_object(file_in(folder, INFO_FILE), MAX_INFO_BYTES)
    version = info.get("codebase_version")
    if not isinstance(version, str) or not version.startswith(("v2.", "v3.")):
        raise EpisodeError(f"{INFO_FILE}: is of version {str(version)[:40]!r}; v2.0, v2.1 and v3.0 are read")
    fps = _number(info, "fps", 1e-3, 1e4)
    features = _features(info)
    is_new = version.startswith("v3.")
    tasks = _tasks_table(folder) if is_new else _tasks_lines(folder)
    found = _episodes_table(folder, info, features) if is_new else _episodes_lines(folder, info, features)
    episodes: dict[int, EpisodePlace] = {}
    for place in found:
        if place.number in episodes:
            raise EpisodeError(f"meta: episode {place.number} is described twice")
        episodes[place.number] = place
    declared = info.get("total_episodes", len(episodes))
    if declared != len(episodes):
        raise EpisodeError(
            f"{INFO_FILE}: counts {str(declared)[:40]} episodes, {len(episodes)} are described"
        )
    if not episodes:
        raise EpisodeError("holds no episodes")
    return DataSetIndex(folder, version, fps, features, tasks, dict(sorted(episodes.items())))


def _number(values: Mapping[str, Any], key: str, low: float, high: float, where: str = INFO_FILE) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise EpisodeError(f"{where}: {key} is {str(value)[:40]}, expected a number from {low:g} to {high:g}")
    return value


def _whole(values: Mapping[str, Any], key: str, low: int, where: str) -> int:
    value = _number(values, key, low, 2**53, where)
    if value != int(value):
        raise EpisodeError(f"{where}: {key} is {value}, expected a whole number")
    return int(value)


def _features(info: Mapping[str, Any]) -> dict[str, Feature]:
    described = info.get("features")
    if not isinstance(described, dict) or not 0 < len(described) <= MAX_FEATURES:
        raise EpisodeError(f"{INFO_FILE}: features are missing, or absurdly many")
    features = {}
    for key, value in described.items():
        where = f"{INFO_FILE}: feature {key[:60]}"
        if not isinstance(value, dict) or not isinstance(value.get("dtype"), str):
            raise EpisodeError(f"{where}: has no dtype")
        shape = value.get("shape")
        if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
            raise EpisodeError(f"{where}: has the shape {str(shape)[:60]}")
        if not key or len(shape) > 5 or np.prod(shape, dtype=np.float64) > MAX_ROW_NUMBERS:
            raise EpisodeError(f"{where}: its shape {str(shape)[:60]} is absurdly large")
        feature = Feature(key, value["dtype"], tuple(shape))
        own = value.get("info")
        names = tuple(map(str, _flat(value.get("names"))))
        features[key] = Feature(
            key,
            value["dtype"],
            tuple(shape),
            names if len(names) == feature.size and len(set(names)) == len(names) else None,
            own if isinstance(own, dict) else {},
        )
    return features


def _flat(names: Any) -> Iterable[Any]:
    """Yields the names of a list, or of lists under headings ({"motors": […]})."""
    if isinstance(names, dict):
        for value in names.values():
            yield from value if isinstance(value, list) else ()
    elif isinstance(names, list):
        yield from names


def _tasks_table(folder: Path) -> dict[int, str]:
    tasks = {}
    for row in read_table(file_in(folder, "meta/tasks.parquet")):
        texts = [value for value in row.values() if isinstance(value, str)]
        if len(texts) != 1:
            raise EpisodeError("meta/tasks.parquet: has no column of texts")
        tasks[_whole(row, "task_index", 0, "meta/tasks.parquet")] = texts[0]
    return tasks


def _tasks_lines(folder: Path) -> dict[int, str]:
    tasks = {}
    for row in _json_lines(folder, "meta/tasks.jsonl"):
        if not isinstance(row.get("task"), str):
            raise EpisodeError("meta/tasks.jsonl: a task is no text")
        tasks[_whole(row, "task_index", 0, "meta/tasks.jsonl")] = row["task"]
    return tasks


def _json_lines(folder: Path, name: str) -> Iterable[dict[str, Any]]:
    path = file_in(folder, name)
    check_ordinary(path, MAX_TEXT_BYTES)
    with path.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise EpisodeError(f"{name}: line {number} is no object")
                yield value
        except (ValueError, RecursionError) as error:
            raise EpisodeError(f"{name}: is not made of JSON lines ({error})"[:300]) from error


def _tasks_of(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    tasks = row.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        raise EpisodeError(f"{where}: the tasks of an episode are no list of texts")
    return tuple(tasks)


def _episodes_lines(
    folder: Path, info: Mapping[str, Any], features: Mapping[str, Feature]
) -> Iterable[EpisodePlace]:
    """v2: a file for each episode."""
    where = "meta/episodes.jsonl"
    chunks_size = _whole(info, "chunks_size", 1, INFO_FILE)
    for row in _json_lines(folder, where):
        number = _whole(row, "episode_index", 0, where)
        values: dict[str, int | str] = {"episode_chunk": number // chunks_size, "episode_index": number}
        videos = {
            key: (fill_template(info.get("video_path"), values | {"video_key": key}, "video_path"), 0.0)
            for key, feature in features.items()
            if feature.dtype == "video"
        }
        file = fill_template(info.get("data_path"), values, "data_path")
        yield EpisodePlace(number, _whole(row, "length", 1, where), _tasks_of(row, where), file, 0, videos)


def _episodes_table(
    folder: Path, info: Mapping[str, Any], features: Mapping[str, Feature]
) -> Iterable[EpisodePlace]:
    """v3: many episodes in a file, one after another."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob("meta/episodes/*/*.parquet"))
    if not names:
        raise EpisodeError("meta/episodes: holds no parquet files")
    rows = [(name, row) for name in names for row in read_table(file_in(folder, name))]
    places, first_of_file = [], {}
    for name, row in rows:
        chunk = {side: _whole(row, f"data/{side}", 0, name) for side in ("chunk_index", "file_index")}
        file = fill_template(info.get("data_path"), chunk, "data_path")
        first = _whole(row, "dataset_from_index", 0, name)
        first_of_file[file] = min(first, first_of_file.get(file, first))
        places.append((name, row, file, first))
    for name, row, file, first in places:
        number, length = _whole(row, "episode_index", 0, name), _whole(row, "length", 1, name)
        stop = _whole(row, "dataset_to_index", 0, name)
        if stop - first != length:
            raise EpisodeError(f"{name}: episode {number} has {length} rows, but is from {first} to {stop}")
        videos = {}
        for key in (key for key, feature in features.items() if feature.dtype == "video"):
            chunk = {
                side: _whole(row, f"videos/{key}/{side}", 0, name) for side in ("chunk_index", "file_index")
            }
            video = fill_template(info.get("video_path"), {**chunk, "video_key": key}, "video_path")
            videos[key] = (video, float(_number(row, f"videos/{key}/from_timestamp", 0, 1e9, name)))
        yield EpisodePlace(number, length, _tasks_of(row, name), file, first - first_of_file[file], videos)
