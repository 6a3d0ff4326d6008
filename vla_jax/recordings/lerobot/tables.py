"""Parquet files of other machines: sizes are compared before anything is read, and only numbers and texts come out."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_jax.errors import UserError
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.untrusted_files import check_ordinary

if TYPE_CHECKING:
    import pyarrow

MAX_FILE_BYTES = 64 << 30
# Of the columns that are read at once: numbers of a row group. Arrays and pictures are read in batches.
MAX_GROUP_BYTES = 4 << 30


def require_libraries() -> None:
    """Raises UserError where the libraries that such data sets need are not installed."""
    try:
        import av  # noqa: F401
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"LeRobot data sets need {error.name}; install the extra: pip install 'vla-jax[lerobot]'"
        ) from error


def open_parquet(path: Path) -> "pyarrow.parquet.ParquetFile":
    """Opens a parquet file; nothing but its footer is read. Raises EpisodeError."""
    import pyarrow
    import pyarrow.parquet

    try:
        check_ordinary(path, MAX_FILE_BYTES)
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException, ValueError) as error:
        raise EpisodeError(f"{path.name}: is no readable parquet file ({_first_line(error)})") from error


def read_rows(path: Path, columns: Sequence[str], first: int, stop: int) -> "pyarrow.Table":
    """Returns the rows first … stop − 1 of some columns. Only the row groups that have them are read, each once for
    the episodes that follow each other in it.

    Raises:
        EpisodeError: a column is missing, the file is damaged or too short.
    """
    import pyarrow

    stamp = _stamp(path)
    starts, names = _groups(path, stamp)
    if missing := sorted(set(columns) - set(names)):
        raise EpisodeError(f"{path.name}: lacks the column(s) {', '.join(missing)}")
    if not 0 <= first <= stop <= starts[-1]:
        raise EpisodeError(f"{path.name}: has {starts[-1]} rows, expected {stop} at least (truncated?)")
    pieces = []
    for group, (begin, end) in enumerate(pairwise(starts)):
        if begin < stop and end > first:
            table = _read_group(path, stamp, group, tuple(columns))
            pieces.append(table.slice(max(first - begin, 0), min(stop, end) - max(first, begin)))
    if not pieces:
        raise EpisodeError(f"{path.name}: has no rows")
    return pyarrow.concat_tables(pieces)


def read_batches(path: Path, column: str, first: int, stop: int, num_rows: int) -> Iterator["pyarrow.Array"]:
    """Yields the rows first … stop − 1 of a column, at most `num_rows` at a time, whatever the size of a row group.

    Raises:
        EpisodeError: the column is missing, or the file is damaged.
    """
    import pyarrow

    starts, names = _groups(path, _stamp(path))
    if column not in names:
        raise EpisodeError(f"{path.name}: lacks the column {column}")
    wanted = [g for g, (a, b) in enumerate(pairwise(starts)) if a < stop and b > first]
    if not wanted:
        return
    at = starts[wanted[0]]
    with open_parquet(path) as file:
        batches = file.iter_batches(num_rows, row_groups=wanted, columns=[column])
        while at < stop:
            try:
                batch = next(batches, None)
            except (pyarrow.ArrowException, OSError) as error:
                raise EpisodeError(f"{path.name}: {column} cannot be read ({_first_line(error)})") from error
            if batch is None:
                return
            values = batch.column(0)
            skipped = max(first - at, 0)
            piece = values.slice(skipped, max(0, min(stop - at, len(values)) - skipped))
            at += len(values)
            if len(piece):
                yield piece


def read_table(path: Path, unless: str = "stats/") -> list[dict[str, Any]]:
    """Returns a table of descriptions row by row, without the columns whose names begin with `unless`.

    Raises:
        EpisodeError: the file is damaged or absurdly large.
    """
    with open_parquet(path) as file:
        columns = [name for name in file.schema_arrow.names if not name.startswith(unless)]
        num_rows = file.metadata.num_rows
    if num_rows > 10_000_000:
        raise EpisodeError(f"{path.name}: {num_rows} rows are absurdly many")
    return read_rows(path, columns, 0, num_rows).to_pylist() if num_rows else []


def numbers(column: Any, shape: Sequence[int], where: str) -> np.ndarray:
    """Returns a column (n rows) as numbers (n, *shape) of their own type. where: names it in errors.

    Raises:
        EpisodeError: it holds something else (texts, bytes, objects), has gaps, or rows of another shape.
    """
    import pyarrow
    import pyarrow.types as types

    values = column.combine_chunks() if isinstance(column, pyarrow.ChunkedArray) else column
    num_rows, size = len(values), int(np.prod(shape, dtype=np.int64))
    declared = values.type
    while True:
        if isinstance(values, pyarrow.ExtensionArray):
            values = values.storage
        if values.null_count:
            raise EpisodeError(f"{where}: has empty values")
        if not types.is_nested(values.type):
            break
        if not (
            types.is_list(values.type)
            or types.is_large_list(values.type)
            or types.is_fixed_size_list(values.type)
        ):
            raise EpisodeError(f"{where}: holds {declared}, expected numbers")
        if not types.is_fixed_size_list(values.type):
            lengths = np.diff(values.offsets.to_numpy(zero_copy_only=False))
            if len(lengths) and (lengths != lengths[0]).any():
                raise EpisodeError(f"{where}: its rows have different lengths")
        elif not types.is_fixed_size_list(values.type):
            raise EpisodeError(f"{where}: holds {declared}, expected numbers")
        values = values.flatten()
    if types.is_boolean(values.type) or types.is_integer(values.type) or types.is_floating(values.type):
        flat = values.to_numpy(zero_copy_only=False)
    else:
        raise EpisodeError(f"{where}: holds {declared}, expected numbers")
    if len(flat) != num_rows * size:
        per_row = len(flat) / num_rows if num_rows else 0
        raise EpisodeError(
            f"{where}: has {per_row:g} numbers in a row, meta/info.json says {size} {tuple(shape)}"
        )
    return flat.reshape(num_rows, *shape)


def _stamp(path: Path) -> tuple[int, int]:
    """Returns size and modification time, so that what is remembered of a file is not used for another."""
    try:
        status = path.stat()
    except OSError as error:
        raise EpisodeError(f"{path.name}: is missing") from error
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=256)
def _groups(path: Path, stamp: tuple[int, int]) -> tuple[list[int], tuple[str, ...]]:
    """Returns the n + 1 rows at which the n row groups begin and end, and the names of the columns."""
    with open_parquet(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        names = tuple(file.schema_arrow.names)
    if any(size < 0 for size in sizes):
        raise EpisodeError(f"{path.name}: is damaged")
    return np.cumsum([0, *sizes]).tolist(), names


@lru_cache(maxsize=4)
def _read_group(path: Path, stamp: tuple[int, int], group: int, columns: tuple[str, ...]) -> Any:
    import pyarrow

    try:
        with open_parquet(path) as file:
            described = file.metadata.row_group(group)
            parts = [described.column(i) for i in range(described.num_columns)]
            size = sum(
                part.total_uncompressed_size
                for part in parts
                if any(f"{part.path_in_schema}.".startswith(f"{name}.") for name in columns)
            )
            if size > MAX_GROUP_BYTES:
                raise EpisodeError(f"{path.name}: {size} bytes in one row group are too many")
            return file.read_row_group(group, columns=list(columns))
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
        raise EpisodeError(f"{path.name}: cannot be read ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
