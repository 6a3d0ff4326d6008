"""The columns of a packed data set: one table, which whoever writes, joins, cuts and reads a data set goes through.

A column is a .npy file with one row per control tick, camera instant, picture, histogram bin or episode. Episodes are
packed one by one, with row numbers that count from their own beginnings; joining them puts their rows one after
another and shifts those numbers.

`register_column` adds a per-tick column: a reader provides what was recorded (`Recording.streams[name]`), and each tick
sees the newest value at or before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, TypeGuard

import numpy as np
from jaxtyping import Int64, UInt8

from vla_jax.timing import newest_at_or_before

Rows = Literal["tick", "instant", "image", "bin", "episode"]


@dataclass(frozen=True)
class Column:
    """One column. Frozen, comparable, and JSON by `to_json`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] = ()
    """Of one row; a name stands for a size that the data decide."""
    per: Rows = "tick"
    """What has one row."""
    counts: Literal["sensor", "instant", "image"] | None = None
    """The rows that its values number, so that joining shifts them; −1 for none stays."""
    on_joining: bool = False
    """Whether it is made when episodes are joined, since it depends on the data set's settings or other episodes."""
    fill: float | int | None = None
    """Value of ticks before the first recorded one and of episodes without; None is NaN. Registered columns only."""
    in_batches: bool = False
    """Whether batches carry it (`Batch.columns`). Registered columns only."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            # It is a file's name too, and data sets come from other machines.
            raise ValueError(f"{self.name!r} is no name for a column")
        if self.fill is not None and np.isnan(self.fill):
            object.__setattr__(self, "fill", None)  # NaN differs from itself, and columns are compared.

    def shifted(self, values: np.ndarray, offsets: Mapping[str, int], sign: int = 1) -> np.ndarray:
        """Returns an episode's values with their row numbers moved by the episode's first rows. sign: −1 undoes it."""
        if self.counts is None:
            return values
        return np.where(values >= 0, values + sign * offsets[self.counts], -1).astype(values.dtype)

    def aligned(self, times: np.ndarray, values: np.ndarray, ticks: np.ndarray) -> np.ndarray:
        """Returns the newest of recorded values at or before each tick, as (n, *shape). Raises ValueError: no fit."""
        if values.shape[1:] != self.shape or len(values) != len(times):
            expected = ", ".join(["m", *map(str, self.shape)])
            raise ValueError(
                f"stream {self.name}: values of shape {values.shape} at {len(times)} times, expected ({expected})"
            )
        newest = newest_at_or_before(times, ticks)
        found = self.unknown(len(ticks))
        found[newest >= 0] = values[newest[newest >= 0]]
        return found

    def unknown(self, num_ticks: int) -> np.ndarray:
        """Returns the column of ticks that nothing was recorded for."""
        shape = self.shape
        assert _is_known(shape), "as that of every registered column"
        return np.full((num_ticks, *shape), np.nan if self.fill is None else self.fill, self.dtype)

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values; `from_json` is the inverse."""
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Column":
        """Builds a column from `to_json`'s values."""
        values: dict[str, Any] = {**value, "shape": tuple(value["shape"])}
        return cls(**values)


COLUMNS = (
    # When the tick is, unix seconds; the recorded pose or joints there; its action.
    Column("time", "float64"),
    Column("pose", "float64", ("state",)),
    Column("delta", "float32", ("action",)),
    # The tick's sensor rows are some of [begin, end) of `sensor`; when the newest of them was taken.
    Column("sensor_begin", "int64", counts="sensor"),
    Column("sensor_end", "int64", counts="sensor"),
    Column("sensor_time", "float64"),
    # The newest camera instant at the tick, and the one that its features come from.
    Column("instant", "int32", counts="instant"),
    Column("record", "int32", counts="instant", on_joining=True),
    Column("episode", "int32", on_joining=True),
    # Whether the tick may be shown in training.
    Column("is_sample", "bool"),
    # Each view's picture at a camera instant.
    Column("instant_images", "int32", ("view",), per="instant", counts="image"),
    Column("instant_episode", "int32", per="instant", on_joining=True),
    # sha256 of each picture's bytes, and when it was taken; an episode's pictures are view after view.
    Column("image_digest", "uint8", (32,), per="image"),
    Column("image_time", "float64", per="image"),
    # `vla_jax.dataset.statistics.SensorMoments`: moments, and the occupied bins of the histograms.
    Column("moments", "float64", (2, 5), per="episode"),
    Column("centred", "float64", (2, 2), per="episode"),
    Column("histogram_bin", "uint16", per="bin"),
    Column("histogram_count", "int64", per="bin"),
)

_REGISTERED: dict[str, Column] = {}


def register_column(column: Column) -> None:
    """Adds a column to the data sets that are prepared from now on.

    Raises:
        ValueError: its name is taken, it is not per tick, its shape is not known, or it is of whole
            numbers and says no `fill`.
    """
    if column.name in {*_REGISTERED, *(known.name for known in COLUMNS)}:
        raise ValueError(f"there is a column {column.name!r} already")
    if column.per != "tick" or column.counts or column.on_joining or not _is_known(column.shape):
        raise ValueError(f"column {column.name}: only columns of known shape, one row per tick, can be added")
    if column.fill is None and np.dtype(column.dtype).kind != "f":
        raise ValueError(f"column {column.name}: {column.dtype} has no NaN; say what fills it")
    _REGISTERED[column.name] = column


def _is_known(shape: tuple[int | str, ...]) -> TypeGuard[tuple[int, ...]]:
    return all(isinstance(size, int) for size in shape)


def unregister_column(name: str) -> None:
    """Takes a column away; data sets that have it keep it."""
    del _REGISTERED[name]


def registered_columns() -> tuple[Column, ...]:
    """Returns the added columns, in order."""
    return tuple(_REGISTERED.values())


def pack_texts(texts: Sequence[str]) -> tuple[UInt8[np.ndarray, " bytes"], Int64[np.ndarray, " starts"]]:
    """Returns the UTF-8 bytes of all texts, one after another, and the n + 1 places where each begins and ends."""
    encoded = [text.encode() for text in texts]
    starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), starts


def unpack_texts(
    text: UInt8[np.ndarray, " bytes"], starts: Int64[np.ndarray, " starts"], first: int, stop: int
) -> list[str]:
    """Returns the texts first … stop − 1."""
    bounds = starts[first : stop + 1].tolist()
    return [text[a:b].tobytes().decode() for a, b in pairwise(bounds)]
