"""Reads `legacy` episodes: data.pkl with actions at 10 Hz, picture paths and perhaps sensor rows per action."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import numpy as np

from vla_jax.contracts.specs import LAB_ACTIONS, LAB_STATE
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.frame import Frame, time_in_name
from vla_jax.recordings.lab import NUM_CHANNELS, task_instruction
from vla_jax.recordings.reader import EpisodeReader
from vla_jax.recordings.recording import Recording
from vla_jax.recordings.restricted_pickle import read_pickle
from vla_jax.recordings.sensor_rows import ArrayRows, SensorRecording
from vla_jax.recordings.untrusted_files import check_ordinary

LEGACY_HZ = 10.0
CONFIDENCE_WITHOUT_SENSOR = 0.5
MAX_SENSOR_BYTES = 16 << 30


@dataclass(frozen=True)
class LegacyOptions:
    """Settings of the `legacy` reader."""

    allow_external_images: bool = False
    """Accept pictures outside the episode's folder, where data.pkl says they are."""


class LegacyReader(EpisodeReader):
    """The lab's oldest format. Its poses are unknown; each action is the delta of one control tick."""

    kind = "legacy"
    told_by = "data.pkl"
    options = LegacyOptions

    def recognises(self, names: Collection[str]) -> bool:
        """By its pickle."""
        return "data.pkl" in names

    def read(
        self, episode: Path, options: LegacyOptions = LegacyOptions(), *, with_sensor: bool = True
    ) -> Recording:
        """Without `with_sensor` the confidence stays that of the recording.

        Raises:
            EpisodeError: data.pkl is damaged, hostile, or holds something of the wrong shape.
        """
        content = read_legacy_content(episode)
        sensor, ticks = _sensor(episode, content), _tick_times(content)
        recording = Recording(
            name=episode.resolve().name,
            format=self.kind,
            folder=episode,
            instruction=content.instruction or task_instruction(episode),
            times=ticks,
            state_names=LAB_STATE,
            actions=content.actions,
            rate_hz=LEGACY_HZ,
            in_whole_chunks=True,
            confidence=1.0 if sensor is not None else CONFIDENCE_WITHOUT_SENSOR,
        )
        with recording.collecting():
            recording.views = _views(content, ticks, episode, options.allow_external_images)
        if with_sensor and sensor is not None:
            recording.sensor = SensorRecording(ArrayRows(sensor, "data.pkl"), ticks, LEGACY_HZ)
        return recording


@dataclass(frozen=True)
class LegacyContent:
    """What data.pkl holds, checked but for the sensor.

    actions: (T, 7) f32; image_paths: view → stored paths, None where missing; sensor_data: as stored.
    """

    actions: np.ndarray
    image_paths: dict[str, tuple[str | None, ...]]
    sensor_data: Any
    instruction: str | None


def read_legacy_content(folder: Path) -> LegacyContent:
    """Reads data.pkl. Raises EpisodeError."""
    stored = read_pickle(folder / "data.pkl")
    if not isinstance(stored, dict):
        raise EpisodeError(f"data.pkl: holds a {type(stored).__name__}, not a dictionary")
    actions = stored.get("action")
    num_dims = LAB_ACTIONS.size
    if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.shape[1] != num_dims:
        shape = actions.shape if isinstance(actions, np.ndarray) else type(actions).__name__
        raise EpisodeError(f"data.pkl: action is {shape}, expected an array (T, {num_dims})")
    if not len(actions):
        raise EpisodeError("data.pkl: holds no actions")
    if not np.isfinite(actions).all():
        raise EpisodeError(f"data.pkl: action {int(np.argwhere(~np.isfinite(actions))[0, 0])} is not finite")
    instruction = stored.get("instruction")
    if instruction is not None and (not isinstance(instruction, str) or not instruction.strip()):
        raise EpisodeError("data.pkl: instruction is not a text")
    return LegacyContent(
        actions.astype(np.float32),
        _image_paths(stored.get("image", {})),
        stored.get("sensor_data"),
        instruction,
    )


def _image_paths(stored: Any) -> dict[str, tuple[str | None, ...]]:
    if not isinstance(stored, dict):
        raise EpisodeError("data.pkl: image is not a dictionary of views")
    views = {}
    for view, paths in stored.items():
        is_paths = isinstance(paths, list | tuple) and all(p is None or isinstance(p, str) for p in paths)
        if not isinstance(view, str) or not is_paths:
            raise EpisodeError(f"data.pkl: image[{str(view)[:40]!r}] is not a list of paths")
        if len(paths):
            views[view] = tuple(path or None for path in paths)
    return dict(sorted(views.items()))


def sensor_file(folder: Path, num_actions: int) -> np.ndarray | None:
    """Maps the (T, 1026) array of sensor_data.npy; None if there is none, or one of another shape.

    Raises:
        EpisodeError: the file is damaged.
    """
    beside = folder / "sensor_data.npy"
    if not beside.exists():
        return None
    try:
        check_ordinary(beside, MAX_SENSOR_BYTES)
        array = np.load(beside, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise EpisodeError(f"sensor_data.npy: damaged ({error})") from error
    # The reference ignores one of another shape.
    return array if array.shape == (num_actions, NUM_CHANNELS) and array.dtype.kind == "f" else None


def _sensor(folder: Path, content: LegacyContent) -> np.ndarray | None:
    num_actions, stored = len(content.actions), content.sensor_data
    beside = sensor_file(folder, num_actions)
    if beside is not None or stored is None:
        return beside
    if isinstance(stored, dict):
        force, scan = stored.get("force"), stored.get("fpi")
        if not (_is_numeric(force) and _is_numeric(scan)):
            raise EpisodeError("data.pkl: sensor_data lacks force or fpi")
        column = force[:, None] if force.ndim == 1 else force
        if column.shape != (num_actions, 1) or scan.shape != (num_actions, NUM_CHANNELS - 1):
            raise EpisodeError(
                f"data.pkl: force {force.shape} and fpi {scan.shape} for {num_actions} actions, expected "
                f"({num_actions},) and ({num_actions}, {NUM_CHANNELS - 1})"
            )
        return np.concatenate([column, scan], axis=1).astype(np.float32)
    if (
        not isinstance(stored, np.ndarray)
        or stored.shape != (num_actions, NUM_CHANNELS)
        or stored.dtype.kind != "f"
    ):
        shape = stored.shape if isinstance(stored, np.ndarray) else type(stored).__name__
        raise EpisodeError(f"data.pkl: sensor_data is {shape}, expected ({num_actions}, {NUM_CHANNELS})")
    return stored.astype(np.float32)


def _is_numeric(value: Any) -> TypeGuard[np.ndarray]:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiu"


def _tick_times(content: LegacyContent) -> np.ndarray:
    """Pictures and actions share their index: the ticks are the pictures' times where these are usable."""
    nominal = np.arange(len(content.actions)) / LEGACY_HZ
    for paths in content.image_paths.values():
        present = [path for path in paths if path is not None]
        if len(paths) == len(present) == len(nominal):
            try:
                times = np.array([time_in_name(path) for path in present])
            except EpisodeError:
                continue
            if (np.diff(times) > 0).all():
                return times
    return nominal


def _views(
    content: LegacyContent, ticks: np.ndarray, folder: Path, allow_external: bool
) -> dict[str, tuple[Frame, ...]]:
    views, missing = {}, []
    for view, paths in content.image_paths.items():
        found = []
        for path in paths[: len(ticks)]:
            place = None if path is None else locate_image(folder, view, path, allow_external)
            if path is not None and place is None:
                missing.append(path)
            found.append(place)
        if any(found):
            views[view] = tuple(
                Frame(folder, place, float(time)) for place, time in zip(found, ticks, strict=False)
            )
    if missing:
        hint = "" if allow_external else "; --allow-external-images reads them where data.pkl says they are"
        first = repr(missing[0])[:200]
        raise EpisodeError(
            f"data.pkl: {len(missing)} picture(s) are not in the episode, the first {first}{hint}"
        )
    return views


def locate_image(folder: Path, view: str, stored: str, allow_external: bool) -> str | None:
    """Returns where a picture named in a pickle lies, relative to the episode's folder; None if it is not there.

    Paths are looked for by view and file name under the folder first, since they were written on another machine.
    A path that leaves the folder, through `..` or a link, does not count, unless `allow_external`.
    """
    parts = [part for part in PurePosixPath(stored.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    if not parts or "\0" in stored:
        return None
    root = folder.resolve()
    for tail in (parts, parts[-2:], [view, parts[-1]], [*view.split("_"), parts[-1]], parts[-1:], parts[-3:]):
        candidate = folder.joinpath(*tail)
        if candidate.is_file() and candidate.resolve().is_relative_to(root):
            return str(PurePosixPath(*tail))
    if allow_external and (folder / stored).is_file():
        return str((folder / stored).resolve())
    return None
