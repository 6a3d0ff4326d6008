"""One shard: an immutable safetensors file of feature records, named by the digest of its own bytes.

Tensors, in file order (safetensors puts wide types first, so the table precedes the features and opening a
shard reads its first kilobytes only):

- `keys` uint64 (n, 2): record keys, big-endian halves as numbers
- `offsets` int64 (n + 1): rows of record i are features[offsets[i] : offsets[i + 1]]
- `checksums` uint32 (n): CRC-32 of key and features of each record, checked when the record is first read
- `features` float16 or bfloat16 (rows, V)

The metadata holds, as JSON, the format version, the provenance and the prompts with their counts. The file's
name covers every byte, header included; `verify` compares them. The checksums in the table are others, and CRCs:
training reads single records by memory map and must not hash a whole shard, or a record slowly, for each.
"""

import dataclasses
import hashlib
import json
import logging
import mmap
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from feature_cache.keys import KEY_BYTES
from vla_jax.errors import UserError
from vla_jax.storage.checksums import file_digest
from vla_jax.storage.replacing import replace_file

logger = logging.getLogger(__name__)

FORMAT = "vla-jax-features-1"
SUFFIX = ".safetensors"
_METADATA_KEY = "vla_jax"
PREFIX = "shard-"
_NAME_DIGITS = 32
# Larger than the header and table of a usual shard, so that opening it is one read.
_FIRST_READ_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 100 * 1024 * 1024


class DamagedShardError(UserError):
    """A shard's bytes are not those that were written."""

    def __init__(self, path: Path, reason: str):
        super().__init__(
            f"{path}: damaged feature shard ({reason}); run the export again: "
            "it sets the shard aside and writes its features anew"
        )
        self.path = path
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class ShardTable:
    """Everything about a shard but its features."""

    path: Path
    keys: np.ndarray
    """uint64 (n, 2)"""
    offsets: np.ndarray
    """int64 (n + 1)"""
    checksums: np.ndarray
    """uint32 (n)"""
    width: int
    dtype: np.dtype
    features_start: int
    """Byte position of the features in the file."""
    num_bytes: int
    """Size of the file."""
    provenance_json: str
    prompts: dict[str, int]
    """Prompt → number of its records."""


def storage_dtype(name: str) -> np.dtype:
    """Returns the numpy type of `float16` or `bfloat16`."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def pack_keys(keys: list[str]) -> np.ndarray:
    """Returns hex keys as uint64 (n, 2)."""
    raw = np.frombuffer(bytes.fromhex("".join(keys)), dtype=">u8")
    if raw.size != 2 * len(keys):
        raise ValueError(f"record keys must have {2 * KEY_BYTES} hex characters")
    return raw.reshape(-1, 2).astype(np.uint64)


def unpack_keys(keys: np.ndarray) -> list[str]:
    """Returns uint64 (n, 2) keys as hex; the inverse of `pack_keys`."""
    digits = keys.astype(">u8").tobytes().hex()
    return [digits[i : i + 2 * KEY_BYTES] for i in range(0, len(digits), 2 * KEY_BYTES)]


def record_checksum(key: np.ndarray, features: np.ndarray) -> int:
    """Returns the CRC-32 of one record. key: uint64 (2,); features: contiguous (n, V)."""
    return zlib.crc32(features.view(np.uint8).data, zlib.crc32(key.tobytes()))


def write_shard(
    directory: Path,
    keys: list[str],
    arrays: list[np.ndarray],
    *,
    provenance_json: str,
    prompts: dict[str, int],
) -> Path:
    """Writes one complete shard into `directory` and returns its path.

    arrays: the records' features, each (n_slots, V) in the storage type. The file appears under its final
    name at once, after its bytes have reached the disk; writing the same records twice gives the same file.
    """
    packed = pack_keys(keys)
    table = {
        "keys": packed,
        "offsets": np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int64),
        "checksums": np.array(
            [record_checksum(key, array) for key, array in zip(packed, arrays, strict=True)], dtype=np.uint32
        ),
        "features": np.concatenate(arrays),
    }
    description = {"format": FORMAT, "provenance": provenance_json, "prompts": prompts}
    # One entry only: safetensors writes several in random order, and equal shards should be equal files.
    data = save(table, metadata={_METADATA_KEY: json.dumps(description, sort_keys=True, ensure_ascii=False)})
    path = directory / _name(hashlib.sha256(data).hexdigest())
    replace_file(path, lambda file: file.write(data))
    return path


def read_table(path: Path) -> ShardTable:
    """Reads a shard's header and table, not its features.

    Raises:
        DamagedShardError: the file is truncated, or its header and table contradict each other.
    """
    try:
        with open(path, "rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            start = file.read(_FIRST_READ_BYTES)
            header_bytes = int.from_bytes(start[:8], "little")
            if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, num_bytes - 8):
                raise DamagedShardError(path, "truncated or not a safetensors file")
            start += file.read(max(0, 8 + header_bytes - len(start)))
            header = json.loads(start[8 : 8 + header_bytes])
            description = json.loads(header["__metadata__"][_METADATA_KEY])
            if description["format"] != FORMAT:
                raise DamagedShardError(path, f"format {description['format']!r} is not {FORMAT!r}")
            first, stop = header["features"]["data_offsets"]
            data_start = 8 + header_bytes
            if data_start + stop != num_bytes:
                raise DamagedShardError(path, f"{num_bytes} bytes, its header says {data_start + stop}")
            start += file.read(max(0, data_start + first - len(start)))
        return _table_from_parts(path, header, description, start[data_start : data_start + first], num_bytes)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedShardError(path, f"unreadable header: {error}") from error


def _table_from_parts(
    path: Path, header: dict, description: dict, table: bytes, num_bytes: int
) -> ShardTable:
    def column(name: str, dtype: str) -> np.ndarray:
        begin, end = header[name]["data_offsets"]
        return np.frombuffer(table[begin:end], dtype=dtype).reshape(header[name]["shape"])

    keys, offsets, checksums = column("keys", "<u8"), column("offsets", "<i8"), column("checksums", "<u4")
    rows, width = header["features"]["shape"]
    first, stop = header["features"]["data_offsets"]
    dtype = storage_dtype({"F16": "float16", "BF16": "bfloat16"}[header["features"]["dtype"]])
    consistent = (
        keys.shape == (len(checksums), 2)
        and offsets.shape == (len(checksums) + 1,)
        and offsets[0] == 0
        and offsets[-1] == rows
        and bool(np.all(np.diff(offsets) >= 0))
        and (stop - first) == rows * width * dtype.itemsize
    )
    if not consistent:
        raise DamagedShardError(path, "its table contradicts its header")
    features_start = num_bytes - (stop - first)
    provenance, prompts = description["provenance"], description["prompts"]
    return ShardTable(
        path, keys, offsets, checksums, width, dtype, features_start, num_bytes, provenance, prompts
    )


def map_features(table: ShardTable) -> np.ndarray:
    """Returns the shard's features (rows, V) as a read-only memory map.

    Raises:
        DamagedShardError: the file is gone or has changed its size since its table was read.
    """
    try:
        with open(table.path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise DamagedShardError(table.path, "the file has been removed while in use") from error
    if len(mapped) != table.num_bytes:
        raise DamagedShardError(table.path, f"{len(mapped)} bytes, {table.num_bytes} when it was opened")
    rows = int(table.offsets[-1])
    flat = np.frombuffer(mapped, table.dtype, count=rows * table.width, offset=table.features_start)
    return flat.reshape(rows, table.width)


def verify(path: Path) -> None:
    """Compares every byte of a shard with its name.

    Raises:
        DamagedShardError: any bit differs from what was written.
    """
    if path.name != _name(file_digest(path)):
        # The table says more precisely what is wrong, when it can.
        read_table(path)
        raise DamagedShardError(path, "its content does not match the checksum in its name")


def find_damaged(paths: Iterable[Path]) -> list[DamagedShardError]:
    """Compares every byte of several shards with their names, on all processors; returns one error per damaged one.

    A shard that another process has set aside or removed meanwhile is passed over.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return [error for error in threads.map(_damage, paths) if error is not None]


def _damage(path: Path) -> DamagedShardError | None:
    try:
        verify(path)
    except DamagedShardError as error:
        return error
    except FileNotFoundError:
        logger.debug("%s has gone", path)
    return None


def _name(digest: str) -> str:
    """Returns the file name of a shard whose bytes have this SHA-256."""
    return f"{PREFIX}{digest[:_NAME_DIGITS]}{SUFFIX}"
