"""Reads the episodes of LeRobot data sets, one folder each, without torch and without the lerobot package."""

import hashlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.frame import Frame
from vla_jax.recordings.lerobot.index import (
    INFO_FILE,
    DataSetIndex,
    EpisodePlace,
    Feature,
    is_data_set,
    open_index,
)
from vla_jax.recordings.lerobot.meaning import LeRobotOptions, Meaning, find_meaning
from vla_jax.recordings.lerobot.paths import file_in
from vla_jax.recordings.lerobot.pictures import StoredPicture, VideoFrame
from vla_jax.recordings.lerobot.poses import POSE_SIZES, UNITS, delta_names, pose_changes
from vla_jax.recordings.lerobot.sensor import SensorColumn
from vla_jax.recordings.lerobot.tables import numbers, read_rows
from vla_jax.recordings.reader import EpisodeReader
from vla_jax.recordings.recording import Recording
from vla_jax.recordings.sensor_rows import SensorRecording
from vla_jax.recordings.untrusted_files import check_times

_BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
DEFAULTS = LeRobotOptions()


class LeRobotReader(EpisodeReader):
    """LeRobot's format, v2.0, v2.1 and v3.0. An episode's path is made up: FOLDER/episode_000003.

    Where the task changes within an episode, each stretch of one task is an episode of its own,
    FOLDER/episode_000003.part-0 and so on; they are training or held-out together.
    """

    kind, told_by = "lerobot", INFO_FILE
    options = LeRobotOptions

    def recognises(self, names: Collection[str]) -> bool:
        """By its folders; `episodes` looks into the description."""
        return "meta/" in names and "data/" in names

    def episodes(self, folder: Path) -> Sequence[Path]:
        """Returns a path for each stretch of one task. Raises EpisodeError: the description is damaged."""
        if not is_data_set(folder):
            return ()
        index = open_index(folder)
        paths: list[Path] = []
        for place in index.episodes.values():
            path = folder / f"episode_{place.number:06d}"
            num_parts = len(_task_changes(index, place)) + 1 if len(set(place.tasks)) > 1 else 1
            paths += [path] if num_parts == 1 else [Path(f"{path}.part-{part}") for part in range(num_parts)]
        return paths

    def is_there(self, episode: Path) -> bool:
        """Tells whether the data set's description is."""
        return (episode.parent / INFO_FILE).is_file()

    def fingerprint(self, episode: Path) -> str:
        """Returns a digest of the sizes and modification times of the description and of the episode's files."""
        folder = episode.parent
        lines = [f"{folder.resolve().name}/{episode.name}"]
        try:
            index = open_index(folder)
            place, _ = _place(index, episode)
            files = [INFO_FILE, place.file, *(file for file, _ in place.videos.values())]
            for file in files:
                status = file_in(folder, file).stat()
                lines.append(f"{file}\0{status.st_size}\0{status.st_mtime_ns}")
            lines.append(repr(place))
        except (EpisodeError, OSError) as error:
            # Reading it will say what is wrong.
            lines.append(f"unreadable: {error}")
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def action_hz(self, episode: Path, options: LeRobotOptions) -> float:
        """Returns the rows a second, or of every `row_stride`-th of them."""
        return find_meaning(open_index(episode.parent), options).rate_hz

    def choices(self, episode: Path, options: LeRobotOptions) -> tuple[tuple[str, str], ...]:
        """Returns what each column was taken for."""
        index = open_index(episode.parent)
        return find_meaning(index, options).rows(index, options)

    def frame(self, episode: Path, locator: str, time: float) -> Frame:
        """Returns a frame of a video, or an image in a parquet file."""
        kind = VideoFrame if locator.endswith("s") else StoredPicture
        return kind(episode, locator, time)

    def read(
        self, episode: Path, options: LeRobotOptions = DEFAULTS, *, with_sensor: bool = True
    ) -> Recording:
        """Raises EpisodeError: rows are missing, damaged or of another episode, or columns are not as described."""
        index = open_index(episode.parent)
        meaning = find_meaning(index, options)
        place, part = _place(index, episode)
        path = file_in(index.folder, place.file)
        wanted = [meaning.state, meaning.actions, meaning.pose, meaning.gripper and meaning.gripper[0]]
        named = {feature.key: feature for feature in wanted if feature is not None}
        if meaning.sensor is not None and meaning.sensor_valid is not None and with_sensor:
            named[meaning.sensor_valid.key] = meaning.sensor_valid
        first, stop = place.first_row, place.first_row + place.length
        table = read_rows(path, [*_BOOKKEEPING, *named], first, stop)
        book = {name: numbers(table[name], (), f"{path.name}: {name}") for name in _BOOKKEEPING}
        _check_bookkeeping(book, place, path.name)
        columns = {
            key: numbers(table[key], feature.shape, f"{path.name}: {key}") for key, feature in named.items()
        }
        bounds = [0, *_changes(book["task_index"]), place.length]
        if part >= len(bounds) - 1:
            raise EpisodeError(f"{path.name}: episode {place.number} has no part {part}")
        rows = np.arange(bounds[part], bounds[part + 1], options.row_stride)
        task = int(book["task_index"][rows[0]])
        if task not in index.tasks:
            raise EpisodeError(f"{path.name}: task {task} is not described in meta/tasks")
        recording = Recording(
            name=episode.name,
            format=self.kind,
            folder=episode,
            instruction=index.tasks[task],
            rate_hz=meaning.rate_hz,
        )
        if not recording.instruction.strip():
            raise EpisodeError(f"task {task} is an empty text; give a prompt with --instruction")
        times = book["timestamp"].astype(np.float64)
        _take_motion(recording, meaning, options, columns, times, rows)
        recording.views = {
            camera.view: _frames(self, episode, camera, place, times, rows) for camera in meaning.views
        }
        if with_sensor and meaning.sensor is not None:
            valid = np.ones(len(rows), bool)
            if meaning.sensor_valid is not None:
                valid = columns[meaning.sensor_valid.key].reshape(-1)[rows].astype(bool)
            if valid.any():
                windows = SensorColumn(path, meaning.sensor, first + int(rows[0]), options.row_stride, valid)
                recording.sensor = SensorRecording(windows, times[rows][valid], meaning.sensor_hz)
        return recording


def _place(index: DataSetIndex, episode: Path) -> tuple[EpisodePlace, int]:
    """Returns where the episode of a made-up path lies, and which of its parts it is."""
    found = re.fullmatch(r"episode_(\d{6,9})(?:\.part-(\d{1,6}))?", episode.name)
    if found is None or int(found[1]) not in index.episodes:
        raise EpisodeError(f"{episode.name}: there is no such episode in meta/")
    return index.episodes[int(found[1])], int(found[2] or 0)


def _changes(tasks: np.ndarray) -> list[int]:
    """Returns the rows at which the task differs from the row before."""
    return (np.flatnonzero(np.diff(tasks)) + 1).tolist()


def _task_changes(index: DataSetIndex, place: EpisodePlace) -> list[int]:
    """Reads at which rows the task of an episode changes; none where that cannot be read: reading it says why."""
    try:
        path = file_in(index.folder, place.file)
        table = read_rows(path, ["task_index"], place.first_row, place.first_row + place.length)
        return _changes(numbers(table["task_index"], (), "task_index"))
    except EpisodeError:
        return []


def _check_bookkeeping(book: dict[str, np.ndarray], place: EpisodePlace, file: str) -> None:
    if (book["episode_index"] != place.number).any():
        row = int(np.argmax(book["episode_index"] != place.number))
        raise EpisodeError(
            f"{file}: row {place.first_row + row} is of episode {book['episode_index'][row]}, expected {place.number}"
        )
    for name in ("frame_index", "index"):
        expected = np.arange(place.length) + (0 if name == "frame_index" else book[name][0])
        if (book[name] != expected).any():
            row = int(np.argmax(book[name] != expected))
            raise EpisodeError(
                f"{file}: {name} is {book[name][row]} in row {place.first_row + row}, expected {expected[row]}"
            )
    check_times(book["timestamp"].astype(np.float64), f"{file}: timestamp")


def _take_motion(
    recording: Recording,
    meaning: Meaning,
    options: LeRobotOptions,
    columns: dict[str, np.ndarray],
    times: np.ndarray,
    rows: np.ndarray,
) -> None:
    """Fills in times, state and actions; changes of a pose are one fewer than rows."""
    if meaning.actions is not None:
        recording.actions = columns[meaning.actions.key][rows].astype(np.float32)
        recording.action_names, recording.action_units = meaning.actions.dim_names, meaning.units
    else:
        assert meaning.pose is not None, "as find_meaning says"
        millimetres = 1000.0 if options.pose_length == "m" else 1.0
        poses = columns[meaning.pose.key][rows][:, : POSE_SIZES[options.pose_rotation]]
        actions = pose_changes(poses, options.pose_rotation, millimetres)
        names, units = delta_names(options.pose_rotation), UNITS
        rows = rows[:-1]
        if not len(rows):
            raise EpisodeError("a single pose: at least two are needed for an action")
        if meaning.gripper is not None:
            feature, place = meaning.gripper
            values = columns[feature.key].reshape(-1, feature.size)[rows, place]
            actions = np.concatenate([actions, values[:, None].astype(np.float32)], axis=1)
            names, units = (*names, "gripper"), (*units, "")
        recording.actions, recording.action_names, recording.action_units = actions, names, units
    recording.times = times[rows]
    if meaning.state is not None:
        recording.state = columns[meaning.state.key][rows].astype(np.float64)
        recording.state_names = meaning.state.dim_names
        if not np.isfinite(recording.state).all():
            row, dim = np.argwhere(~np.isfinite(recording.state))[0]
            raise EpisodeError(
                f"{meaning.state.key}: {recording.state_names[dim]} is not finite in row {row}"
            )


def _frames(
    reader: LeRobotReader,
    episode: Path,
    camera: Feature,
    place: EpisodePlace,
    times: np.ndarray,
    rows: np.ndarray,
) -> tuple[Frame, ...]:
    if camera.dtype == "video":
        file, start = place.videos[camera.key]
        locators = [f"{file}@{start + time!r}s" for time in times[rows].tolist()]
    else:
        locators = [f"{place.file}@{camera.key}@{place.first_row + row}" for row in rows.tolist()]
    return tuple(
        reader.frame(episode, locator, time)
        for locator, time in zip(locators, times[rows].tolist(), strict=True)
    )
