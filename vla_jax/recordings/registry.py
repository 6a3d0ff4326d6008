"""The readers there are, in the order in which they are asked whether a folder is theirs."""

from collections.abc import Collection

from vla_jax.errors import UserError
from vla_jax.recordings.capture import CaptureReader
from vla_jax.recordings.legacy import LegacyReader
from vla_jax.recordings.lerobot.reader import LeRobotReader
from vla_jax.recordings.reader import EpisodeReader
from vla_jax.recordings.windows import WindowsReader

_READERS: dict[str, EpisodeReader] = {
    reader.kind: reader for reader in (LegacyReader(), WindowsReader(), CaptureReader(), LeRobotReader())
}


def register_reader(reader: EpisodeReader, *, before: str | None = None) -> None:
    """Adds a reader, asked after all others, or `before` the one of that kind. Raises ValueError if its kind is taken.

    The processes that `prepare` starts are handed the reader; only this process must have registered it.
    """
    if reader.kind in _READERS:
        raise ValueError(f"there is a reader of {reader.kind!r} episodes already")
    others = list(_READERS.values())
    place = len(others) if before is None else list(_READERS).index(before)
    _READERS.clear()
    _READERS.update({each.kind: each for each in (*others[:place], reader, *others[place:])})


def unregister_reader(kind: str) -> None:
    """Takes a reader away."""
    del _READERS[kind]


def readers() -> tuple[EpisodeReader, ...]:
    """Returns all readers in order."""
    return tuple(_READERS.values())


def reader_of(kind: str) -> EpisodeReader:
    """Returns the reader of a format. Raises UserError if there is none."""
    if kind not in _READERS:
        raise UserError(
            f"no reader for {kind!r} episodes, only for {', '.join(_READERS)}; import the module that registers it"
        )
    return _READERS[kind]


def recognise(names: Collection[str]) -> EpisodeReader | None:
    """Returns the first reader to which a folder with these entries belongs (sub-folders end in a slash), or None."""
    return next((reader for reader in _READERS.values() if reader.recognises(names)), None)
