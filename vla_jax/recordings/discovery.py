"""Finds recorded episodes under folders, whichever reader's they are."""

import difflib
import glob
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vla_jax.errors import UserError
from vla_jax.recordings import hub
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.reader import EpisodeReader
from vla_jax.recordings.registry import readers, recognise

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class EpisodeFolder:
    """An episode on disk, and the reader that knows it.

    source: the folder or pattern under which it was found, as the user gave it; root: the folder it came to.
    """

    path: Path
    reader: EpisodeReader
    source: str
    root: Path

    @property
    def identity(self) -> str:
        """Names the episode by its task folder and its own; decides its split, wherever the root lies."""
        return episode_identity(self.path.resolve())

    @property
    def labels(self) -> tuple[str, ...]:
        """Names for what it belongs to, widest first: its format, the source as given, the folders from there to its
        own."""
        path, root = self.path.resolve(), self.root.resolve()
        folders = (root.name, *path.relative_to(root).parts)
        # An episode that is itself the source still has a task folder.
        return (
            self.reader.kind,
            self.source,
            *(folders if len(folders) > 1 else (path.parent.name, path.name)),
        )


def episode_identity(path: Path) -> str:
    """Returns `EpisodeFolder.identity` of the episode at an absolute path; the parts of one recording share it."""
    return f"{path.parent.name}/{without_part(path.name)}"


def without_part(name: str) -> str:
    """Returns an episode's name without the number of its part (`EpisodeReader.episodes`)."""
    return re.sub(r"\.part-\d+$", "", name)


def find_episodes(sources: Sequence[str]) -> list[EpisodeFolder]:
    """Returns every episode under the given folders, glob patterns or data sets of the model hub
    (`vla_jax.recordings.hub`), each once, in order of its path.

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
            told_by = ", ".join(reader.told_by for reader in readers())
            raise UserError(f"{source}: holds no episodes; looked in it and below for folders with {told_by}")
        for episode in episodes:
            found.setdefault(episode.path.resolve(), episode)
    return [found[path] for path in sorted(found)]


def choose_by_label(
    episodes: Sequence[EpisodeFolder], given: Mapping[str, ValueT], what: str
) -> list[ValueT | None]:
    """Returns for each episode the value given for its narrowest label; None where none is given.

    given: value by label; what: names the values in errors.

    Raises:
        UserError: a label belongs to no episode.
    """
    given = {name.rstrip("/") or name: value for name, value in given.items()}
    labels = [[label.rstrip("/") or label for label in episode.labels] for episode in episodes]
    known = {label for of_episode in labels for label in of_episode}
    for name in given:
        if name not in known:
            folders = sorted({label for of_episode in labels for label in of_episode[:-1]})
            close = difflib.get_close_matches(name, folders, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(folders)}"
            raise UserError(f"--{what} {name}=…: no source or folder of that name; {hint}"[:500])
    return [
        next((given[label] for label in reversed(of_episode) if label in given), None)
        for of_episode in labels
    ]


def _expand(source: str) -> list[Path]:
    if source.startswith(hub.PREFIX):
        return [hub.fetch(source)]
    path = Path(source).expanduser()
    if path.exists():
        return [path if path.is_dir() else path.parent]
    matches = sorted(glob.glob(str(path), recursive=True))
    if not matches:
        raise UserError(f"{source}: no such folder; give a folder that holds recorded episodes")
    return [Path(match) for match in matches if os.path.isdir(match)]


def _walk(root: Path, source: str) -> list[EpisodeFolder]:
    """Finds the episodes below a folder. Not by `os.walk`, which calls itself for each level, and so has a deepest."""
    episodes = []
    waiting = [str(root)]
    while waiting:
        folder = waiting.pop()
        names, subfolders = _entries(folder)
        reader, found = recognise(names), ()
        if reader is not None:
            try:
                found = reader.episodes(Path(folder))
            except EpisodeError as error:
                raise UserError(f"{folder}: {error}") from error
            episodes += [EpisodeFolder(path, reader, source, root) for path in found]
        if not found:
            seen = sorted(name for name in subfolders if not name.startswith("."))
            waiting += [os.path.join(folder, name) for name in reversed(seen)]
    return episodes


def _entries(folder: str) -> tuple[list[str], list[str]]:
    """Returns what is in a folder, folders with a slash, and those of them to look into: none behind links."""
    names, subfolders = [], []
    # What cannot be read, or lies too deep to be named, holds nothing for us.
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            is_folder = entry.is_dir()
            names.append(f"{entry.name}/" if is_folder else entry.name)
            if is_folder and not entry.is_symlink():
                subfolders.append(entry.name)
    return names, subfolders
