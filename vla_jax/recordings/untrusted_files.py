"""Reads the files of recorded episodes without trusting them: sizes are checked before anything is allocated."""

import ast
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from vla_jax.recordings.recording import NUM_CHANNELS, EpisodeError

MAX_TEXT_BYTES = 512 << 20
MAX_SMALL_ARRAY_BYTES = 256 << 20
MAX_SENSOR_BYTES = 16 << 30
MAX_IMAGE_BYTES = 256 << 20
MAX_IMAGE_PIXELS = 50_000_000
MAX_WINDOW_ROWS = 100_000
# Recorded sensor data shrinks little; what is both large and highly compressed is made to fill the disk.
MAX_COMPRESSION = 300
MAX_COMPRESSED_BYTES = 256 << 20


def check_ordinary(path: Path, max_bytes: int) -> None:
    """Raises EpisodeError unless the path is an ordinary file of at most `max_bytes`: pipes and devices never end.

    Raises OSError where there is nothing.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise EpisodeError(f"{path.name}: is no ordinary file")
    if status.st_size > max_bytes:
        raise EpisodeError(f"{path.name}: {status.st_size} bytes are too many; at most {max_bytes} are read")


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises EpisodeError for anything else."""
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise EpisodeError(f"{path.name}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise EpisodeError(f"{path.name}: holds {type(value).__name__}, not an object")
    return value


def read_csv_columns(path: Path) -> dict[str, np.ndarray]:
    """Reads a CSV of numbers with a header line: column name → (n,) f64; empty columns are left out.

    Raises:
        EpisodeError: no header, no rows, rows of unequal length, or something that is no number.
    """
    lines = _read_text(path).splitlines()
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
    wanted = [i for i, name in enumerate(header) if _is_number_column(name)]
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


def _read_text(path: Path) -> str:
    try:
        check_ordinary(path, MAX_TEXT_BYTES)
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise EpisodeError(f"{path.name}: is missing") from error
    except UnicodeDecodeError as error:
        raise EpisodeError(f"{path.name}: is not text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise EpisodeError(f"{path.name}: cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class NpzMember:
    """An array inside an npz file, known by its header alone."""

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool = False

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=object))

    def read(self) -> np.ndarray:
        """Reads a small array whole."""
        if self.nbytes > MAX_SMALL_ARRAY_BYTES:
            raise EpisodeError(f"{self._where}: {self.shape} {self.dtype} is absurdly large")
        rows = self.shape[0] if self.shape else 1
        blocks = list(self.blocks(max(1, rows)))
        return blocks[0] if blocks else np.empty(self.shape, self.dtype)

    def blocks(self, rows_per_block: int) -> Iterator[np.ndarray]:
        """Yields the array in pieces of `rows_per_block` along its first axis, read in order.

        The file's checksum is verified when the last piece has been read.
        """
        if self.is_fortran:
            raise EpisodeError(
                f"{self._where}: is stored in Fortran order; save it with numpy.ascontiguousarray"
            )
        row_bytes = self.nbytes // max(1, self.shape[0]) if self.shape else self.nbytes
        total = self.shape[0] if self.shape else 1
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                _read_header(stream)
                for start in range(0, total, rows_per_block):
                    count = min(rows_per_block, total - start)
                    data = stream.read(count * row_bytes)
                    if len(data) != count * row_bytes:
                        raise EpisodeError(f"{self._where}: ends after {start} of {total} rows (truncated)")
                    shape = (count, *self.shape[1:]) if self.shape else ()
                    yield np.frombuffer(data, self.dtype).reshape(shape)
                # Reading past the end makes zipfile compare the checksum of what was read.
                if stream.read(1):
                    raise EpisodeError(f"{self._where}: holds more data than its header says")
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise EpisodeError(f"{self._where}: damaged ({error})") from error

    @property
    def _where(self) -> str:
        return f"{self.path.name}[{self.member.removesuffix('.npy')}]"


def open_npz(path: Path) -> dict[str, NpzMember]:
    """Lists the arrays of an npz file by reading their headers only.

    Raises:
        EpisodeError: the file is missing, no zip archive, holds objects or compressed types other than numbers,
            or declares sizes that it cannot hold.
    """
    members = {}
    try:
        check_ordinary(path, MAX_SENSOR_BYTES)
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if not info.filename.endswith(".npy") or len(members) >= 64:
                    raise EpisodeError(f"{path.name}: {info.filename!r} is not an array of numpy")
                is_bomb = info.file_size > max(MAX_COMPRESSED_BYTES, MAX_COMPRESSION * info.compress_size)
                if info.file_size > MAX_SENSOR_BYTES or is_bomb:
                    raise EpisodeError(
                        f"{path.name}[{name}]: declares {info.file_size} bytes, which is absurd"
                    )
                with archive.open(info) as stream:
                    shape, dtype, is_fortran, header_bytes = _read_header(stream)
                member = NpzMember(path, info.filename, shape, dtype, is_fortran)
                if member.nbytes + header_bytes != info.file_size:
                    raise EpisodeError(
                        f"{path.name}[{name}]: {shape} {dtype} needs {member.nbytes} bytes, "
                        f"the file declares {info.file_size - header_bytes}"
                    )
                members[name] = member
    except FileNotFoundError as error:
        raise EpisodeError(f"{path.name}: is missing") from error
    except EpisodeError as error:
        message = str(error)
        raise EpisodeError(message if message.startswith(path.name) else f"{path.name}: {message}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        # RuntimeError: an encrypted member.
        raise EpisodeError(f"{path.name}: damaged or truncated ({error})") from error
    return members


def _read_header(stream: Any) -> tuple[tuple[int, ...], np.dtype, bool, int]:
    """Reads an npy header: (shape, dtype, whether in Fortran order, its length in bytes). Refuses objects."""
    magic = stream.read(8)
    if len(magic) < 8 or magic[:6] != npy_format.MAGIC_PREFIX or magic[6] not in (1, 2, 3):
        raise EpisodeError("not an array of numpy")
    length_bytes = 2 if magic[6] == 1 else 4
    length = int.from_bytes(stream.read(length_bytes), "little")
    if length > 10_000:
        raise EpisodeError("an array's header is absurdly long")
    try:
        header = ast.literal_eval(stream.read(length).decode("latin1").strip())
        shape, fortran = header["shape"], header["fortran_order"]
        dtype = np.dtype(header["descr"]) if isinstance(header["descr"], str) else None
    except (ValueError, TypeError, SyntaxError, KeyError, MemoryError, RecursionError) as error:
        raise EpisodeError(f"an array's header is damaged ({error})") from error
    if dtype is None or dtype.kind not in "fiub":
        raise EpisodeError("an array holds something other than numbers")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 8:
        raise EpisodeError(f"an array has the impossible shape {shape!r}"[:200])
    return shape, dtype, bool(fortran) and len(shape) > 1, 8 + length_bytes + length


@dataclass(frozen=True)
class WindowMember:
    """Sensor windows (N, W, 1026) of one npz member."""

    source: NpzMember

    @property
    def file(self) -> str:
        """Name of the file they come from."""
        return self.source.path.name

    @property
    def num_windows(self) -> int:
        """N."""
        return self.source.shape[0]

    @property
    def window_rows(self) -> int:
        """W."""
        return self.source.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Type in the file."""
        return self.source.dtype

    def blocks(self, rows_per_block: int) -> Iterator[np.ndarray]:
        """Yields windows in order, about `rows_per_block` rows at a time."""
        yield from self.source.blocks(max(1, rows_per_block // max(1, self.window_rows)))


@dataclass(frozen=True)
class RowMembers:
    """Sensor rows kept as two npz members: force (R,) or (R, 1), A-scan (R, 1025)."""

    force: NpzMember
    ascan: NpzMember

    window_rows = 1

    @property
    def file(self) -> str:
        """Name of the file they come from."""
        return self.force.path.name

    @property
    def num_windows(self) -> int:
        """R."""
        return self.force.shape[0]

    @property
    def dtype(self) -> np.dtype:
        """Type in the file."""
        return np.promote_types(self.force.dtype, self.ascan.dtype)

    def blocks(self, rows_per_block: int) -> Iterator[np.ndarray]:
        """Yields (n, 1, 1026) rows in order."""
        forces = self.force.read().reshape(-1)
        start = 0
        for scans in self.ascan.blocks(rows_per_block):
            stop = start + len(scans)
            yield np.concatenate([forces[start:stop, None], scans], axis=1, dtype=self.dtype)[:, None]
            start = stop


def check_sensor_shape(member: NpzMember, num_dims: int) -> None:
    """Raises EpisodeError unless the array has `num_dims` dimensions and the sensor's 1026 channels."""
    where = f"{member.path.name}[{member.member.removesuffix('.npy')}]"
    if len(member.shape) != num_dims or member.shape[-1] != NUM_CHANNELS:
        expected = ", ".join([*["N", "W"][: num_dims - 1], str(NUM_CHANNELS)])
        raise EpisodeError(
            f"{where}: has shape {member.shape}, expected ({expected}): the force and 1025 A-scan bins"
        )
    if num_dims == 3 and member.shape[1] > MAX_WINDOW_ROWS:
        raise EpisodeError(f"{where}: windows of {member.shape[1]} rows are absurdly long")
    if 0 in member.shape:
        raise EpisodeError(f"{where}: holds no rows")
    if member.dtype.kind != "f":
        raise EpisodeError(f"{where}: holds {member.dtype}, expected floating point numbers")


def check_times(times: np.ndarray, what: str) -> None:
    """Raises EpisodeError unless times are finite and strictly ascending."""
    if not np.isfinite(times).all():
        row = int(np.argmin(np.isfinite(times)))
        raise EpisodeError(f"{what}: time stamp {row} is {times[row]}")
    steps = np.diff(times)
    if (steps <= 0).any():
        row = int(np.argmax(steps <= 0))
        kind = "repeats" if steps[row] == 0 else "goes back by"
        amount = "" if steps[row] == 0 else f" {-steps[row]:.6g} s"
        raise EpisodeError(
            f"{what}: times must ascend, but time {row + 1} {kind}{amount} "
            f"({int((steps <= 0).sum())} such place(s))"
        )


def image_time(name: str) -> float:
    """Returns the unix time at the end of a picture's file name. Raises EpisodeError if there is none."""
    stem = os.path.basename(name).rsplit(".", 1)[0]
    try:
        time = float(stem.rsplit("_", 1)[-1])
    except ValueError as error:
        raise EpisodeError(f"{name}: the file name does not end in a unix time") from error
    if not np.isfinite(time):
        raise EpisodeError(f"{name}: the file name does not end in a unix time")
    return time


def check_image(path: Path, data: bytes) -> None:
    """Decodes a picture to its end; nothing less finds a truncated one. Raises EpisodeError naming the file.

    A JPEG is decoded at an eighth of its size, without colour: its coded data is read whole, which is where damage
    shows, and what is left out is arithmetic that cannot fail.
    """
    import io
    import warnings

    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                if image.width * image.height > MAX_IMAGE_PIXELS:
                    raise EpisodeError(f"{path.name}: {image.width}x{image.height} pixels are absurdly many")
                image.draft("L", (1, 1))
                image.load()
    except UnidentifiedImageError as error:
        problem = "is empty" if not data else "is not a JPEG or PNG picture"
        raise EpisodeError(f"{path}: {problem}") from error
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError, MemoryError) as error:
        raise EpisodeError(f"{path}: unreadable picture ({error})") from error
