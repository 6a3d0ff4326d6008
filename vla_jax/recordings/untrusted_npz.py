"""Reads numpy archives without trusting them: what their headers declare is checked before anything is allocated."""

import ast
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.untrusted_files import check_ordinary

MAX_SMALL_ARRAY_BYTES = 256 << 20
MAX_ARCHIVE_BYTES = 16 << 30
# Recorded sensor data shrinks little; what is both large and highly compressed is made to fill the disk.
MAX_COMPRESSION = 300
MAX_COMPRESSED_BYTES = 256 << 20


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
        check_ordinary(path, MAX_ARCHIVE_BYTES)
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if not info.filename.endswith(".npy") or len(members) >= 64:
                    raise EpisodeError(f"{path.name}: {info.filename!r} is not an array of numpy")
                is_bomb = info.file_size > max(MAX_COMPRESSED_BYTES, MAX_COMPRESSION * info.compress_size)
                if info.file_size > MAX_ARCHIVE_BYTES or is_bomb:
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
