"""Finds recorded episodes under folders and tells their formats apart."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_jax.errors import UserError

FORMATS = ("legacy", "windows", "capture")


@dataclass(frozen=True)
class EpisodeFolder:
    """An episode on disk. source: the root or pattern under which it was found, as the user gave it."""

    path: Path
    format: str
    source: str

    @property
    def identity(self) -> str:
        """Names the episode by its task folder and its own; decides its split, wherever the root lies."""
        resolved = self.path.resolve()
        return f"{resolved.parent.name}/{resolved.name}"


def episode_format(names: Sequence[str]) -> str | None:
    """Returns the format of a folder that holds files and folders of these names; None if it is no episode."""
    if "data.pkl" in names:
        return "legacy"
    if "metadata.json" in names:
        return "windows"
    for name in names:
        if name.startswith("robot_state_") and name.endswith(".csv"):
            return "capture"
        if name.startswith("sensor_data_") and name.endswith(".npz"):
            return "capture"
    return None


def find_episodes(sources: Sequence[str]) -> list[EpisodeFolder]:
    """Returns every episode under the given folders or glob patterns, each once, in order of its path.

    Raises:
        UserError: a source does not exist, or holds no episode.
    """
    if not sources:
        raise UserError("no source given; name at least one folder that holds recorded episodes")
    found: dict[Path, EpisodeFolder] = {}
    for source in sources:
        roots = _expand(source)
        episodes = [episode for root in roots for episode in _walk(root, source)]
        if not episodes:
            raise UserError(
                f"{source}: holds no episodes; looked in it and below for folders with metadata.json, data.pkl, "
                "robot_state_*.csv or sensor_data_*.npz"
            )
        for episode in episodes:
            found.setdefault(episode.path.resolve(), episode)
    return [found[path] for path in sorted(found)]


def _expand(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.exists():
        return [path if path.is_dir() else path.parent]
    matches = sorted(glob.glob(str(path), recursive=True))
    if not matches:
        raise UserError(f"{source}: no such folder; give a folder that holds recorded episodes")
    return [Path(match) for match in matches if os.path.isdir(match)]


def _walk(root: Path, source: str) -> list[EpisodeFolder]:
    episodes = []
    for folder, subfolders, files in os.walk(root, followlinks=False):
        kind = episode_format(sorted(files))
        if kind is not None:
            episodes.append(EpisodeFolder(Path(folder), kind, source))
            subfolders.clear()
        else:
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
    return episodes
