"""The door for recorded episodes: what a reader of one format does."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vla_jax.recordings.frame import Frame
from vla_jax.recordings.recording import Recording


@dataclass(frozen=True)
class NoOptions:
    """Of a reader that has none."""


class EpisodeReader(ABC):
    """Reads the episodes of one format. Register one instance (`vla_jax.recordings.registry.register_reader`).

    Instances are sent to the processes that read episodes, so that they must pickle. An episode is named by a path:
    its own folder where that holds one episode.
    """

    kind: ClassVar[str]
    """Name of the format; data sets store it with each episode."""
    told_by: ClassVar[str]
    """Names in a folder that tell the format, for messages."""
    options: ClassVar[type] = NoOptions
    """Frozen dataclass of the settings that only this reader has, with defaults."""

    @abstractmethod
    def recognises(self, names: Collection[str]) -> bool:
        """Tells whether a folder with these entries holds such episodes; sub-folders' names end in a slash."""

    @abstractmethod
    def read(self, episode: Path, options: Any, *, with_sensor: bool = True) -> Recording:
        """Reads one episode; pictures and sensor arrays are listed, not read.

        options: an `options` of this class. with_sensor: False leaves the sensor's files unopened.

        Raises:
            EpisodeError: the episode is damaged; faults beside which reading can go on are collected in the recording.
        """

    def episodes(self, folder: Path) -> Sequence[Path]:
        """Returns the episodes of a folder that it recognises: by default the folder itself is one.

        A format with several in one folder makes up a path below it for each; parts of one recording that must stay on
        one side of the split are named NAME.part-0, NAME.part-1, …. None where a closer look shows that the folder is
        of another kind: the search goes on below it. Raises EpisodeError.
        """
        return (folder,)

    def action_hz(self, episode: Path, options: Any) -> float | None:
        """Returns the rate at which the episode's actions were recorded, where the format says so: what a data set of
        such episodes has by default. Raises EpisodeError.
        """
        return None

    def choices(self, episode: Path, options: Any) -> Sequence[tuple[str, str]]:
        """Returns what was taken for what, where a format leaves that open, for a table: (what, from where).

        Raises:
            EpisodeError: the options do not fit the episode.
        """
        return ()

    def frame(self, episode: Path, locator: str, time: float) -> Frame:
        """Returns a picture of an episode by the locator that a data set stored: by default, a file's path."""
        return Frame(episode, locator, time)

    def is_there(self, episode: Path) -> bool:
        """Tells whether an episode's files are where they were."""
        return episode.is_dir()

    def fingerprint(self, episode: Path) -> str:
        """Returns a digest that changes when an episode does: by default of its name and task, and of its files'
        names, sizes and modification times. No file is opened.
        """
        resolved = episode.resolve()
        lines = [f"{resolved.parent.name}/{resolved.name}", *sorted(_file_lines(str(episode)))]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _file_lines(episode: str) -> Iterator[str]:
    """Yields a line per file below a folder: its path there, size and time; folders behind links are not entered."""
    waiting = [(episode, "")]
    while waiting:
        folder, prefix = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            # The reader will say what is wrong with it.
            yield f"{prefix}\0unreadable"
            continue
        for entry in entries:
            try:
                is_folder, status = entry.is_dir(), entry.stat()
            except OSError:
                # A link to nothing, or to itself.
                is_folder, status = False, entry.stat(follow_symlinks=False)
            if not is_folder:
                yield f"{prefix}{entry.name}\0{status.st_size}\0{status.st_mtime_ns}"
            elif not entry.is_symlink():
                waiting.append((entry.path, f"{prefix}{entry.name}/"))
