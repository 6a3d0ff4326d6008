"""Reads recorded episodes' files without trusting them: text files whose sizes are checked first, and time stamps."""

import json
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.recordings.findings import EpisodeError

MAX_TEXT_BYTES = 512 << 20


# The year 2286; whoever tells times in milliseconds is past it since 1970.
LATEST_UNIX_TIME = 1e10


def check_ordinary(path: Path, max_bytes: int) -> None:
    """Raises EpisodeError unless the path is an ordinary file of at most `max_bytes`: pipes and devices never end.

    Raises OSError where there is nothing.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise EpisodeError(f"{path.name}: is no ordinary file")
    if status.st_size > max_bytes:
        raise EpisodeError(f"{path.name}: {status.st_size} bytes are too many; at most {max_bytes} are read")


def check_name(name: str) -> None:
    """Raises EpisodeError where a file's or folder's name is no UTF-8 text: data sets and prompts hold it as such."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise EpisodeError(f"{printable(name)}: the name is no UTF-8 text; rename it") from error


def printable(name: str) -> str:
    """Returns a name in which what is no UTF-8 is written as an escape."""
    return name.encode("utf-8", "backslashreplace").decode()


def read_json_object(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> dict[str, Any]:
    """Reads a JSON object. Raises EpisodeError for anything else."""
    try:
        value = json.loads(_read_text(path, max_bytes))
    except (ValueError, RecursionError) as error:
        raise EpisodeError(f"{path.name}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise EpisodeError(f"{path.name}: holds {type(value).__name__}, not an object")
    return value


def read_csv_columns(
    path: Path, also: Collection[str] = (), *, is_cut_off: bool = False
) -> dict[str, np.ndarray]:
    """Reads a CSV of numbers with a header line: column name → (n,) f64, of time stamps, poses and those named `also`.

    is_cut_off: whether it may end in the middle of a line, which is then left out.

    Raises:
        EpisodeError: no header, no rows, rows of unequal length, or something that is no number.
    """
    text = _read_text(path)
    if is_cut_off:
        text = text.partition("\0")[0]  # Where a file had grown, a power cut may leave zeros.
        text = text[: text.rfind("\n") + 1]
    lines = text.splitlines()
    if not lines:
        raise EpisodeError(f"{path.name}: is empty")
    header = [name.strip() for name in lines[0].split(",")]
    if len(set(header)) != len(header):
        raise EpisodeError(f"{path.name}: the header names a column twice")
    rows = [line for line in lines[1:] if line.strip()]
    if not rows:
        raise EpisodeError(f"{path.name}: has a header and no rows")
    counts = np.fromiter((line.count(",") + 1 for line in rows), np.int64, len(rows))
    short = np.flatnonzero(counts != len(header))
    if len(short):
        row = int(short[0])
        raise EpisodeError(
            f"{path.name}: row {row + 1} of {len(rows)} has {counts[row]} of {len(header)} fields (truncated?)"
        )
    wanted = [i for i, name in enumerate(header) if name in also or _is_number_column(name)]
    if not wanted:
        raise EpisodeError(
            f"{path.name}: has neither time stamps nor poses; its columns are {', '.join(header)}"[:300]
        )
    try:
        table = np.loadtxt(rows, delimiter=",", usecols=wanted, ndmin=2, dtype=np.float64, comments=None)
    except ValueError as error:
        raise EpisodeError(f"{path.name}: {str(error).split(';')[0]}") from error
    return {header[column]: table[:, i] for i, column in enumerate(wanted)}


def _is_number_column(name: str) -> bool:
    return "timestamp" in name or name == "time" or name.startswith("pose_")


def _read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    try:
        check_ordinary(path, max_bytes)
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise EpisodeError(f"{path.name}: is missing") from error
    except UnicodeDecodeError as error:
        raise EpisodeError(f"{path.name}: is not text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise EpisodeError(f"{path.name}: cannot be read ({error.strerror})") from error


def check_times(times: np.ndarray, what: str) -> None:
    """Raises EpisodeError unless times are finite and strictly ascending; `what` names them."""
    if not np.isfinite(times).all():
        row = int(np.argmin(np.isfinite(times)))
        raise EpisodeError(f"{what}: time stamp {row} is {times[row]}")
    if len(times) and (far := float(np.abs(times).max())) > LATEST_UNIX_TIME:
        raise EpisodeError(
            f"{what}: time {far:.6g} is no unix time in seconds{_unit_of(far)}; recordings tell times in seconds"
        )
    steps = np.diff(times)
    if (steps <= 0).any():
        row = int(np.argmax(steps <= 0))
        kind = "repeats" if steps[row] == 0 else "goes back by"
        amount = "" if steps[row] == 0 else f" {-steps[row]:.6g} s"
        raise EpisodeError(
            f"{what}: times must ascend, but time {row + 1} {kind}{amount} "
            f"({int((steps <= 0).sum())} such place(s))"
        )


def _unit_of(far: float) -> str:
    """Returns in which unit a large number would be a time of this century."""
    for name, seconds in (("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9)):
        if far / seconds < LATEST_UNIX_TIME:
            return f", it looks like {name}"
    return ""
