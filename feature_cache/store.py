"""Reading and writing a feature cache: directories of immutable shards, one directory per provenance.

```
CACHE/<provenance name>/provenance.json
CACHE/<provenance name>/shard-<digest>.safetensors   (any number, from any number of writers)
```

The index is built from the shards' tables on opening; nothing else needs to agree with them, so writers need
no locks and a killed writer leaves at worst one ignored temporary file.
"""

import logging
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from feature_cache import shard as shards
from feature_cache.shard import DamagedShardError, ShardTable
from vla_jax.contracts.provenance import NAME_LENGTH, Provenance
from vla_jax.errors import UserError
from vla_jax.storage.replacing import replace_text

logger = logging.getLogger(__name__)

PROVENANCE_FILE = "provenance.json"


class FeatureStore:
    """Random access to the records of one provenance, memory-mapped.

    Records are checked against their checksums when they are first read. The store is safe to read from
    several threads; it does not see shards that are written after it was opened.
    """

    def __init__(self, directory: Path, provenance: Provenance, tables: list[ShardTable]):
        self.directory = directory
        self.provenance = provenance
        self.damaged: dict[Path, DamagedShardError] = {}
        """Shards that could not be opened; their records count as absent."""
        self._tables = tables
        self._build_index()
        self._lock = threading.Lock()
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        # Each map holds a file descriptor; leave half of those allowed to the rest of the process.
        self._max_maps = max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    @classmethod
    def provenances(cls, cache_dir: str | os.PathLike) -> list[tuple[str, Provenance]]:
        """Returns (name, provenance) of everything a cache directory holds, sorted by name.

        Raises:
            UserError: the directory is missing, or a provenance file is damaged.
        """
        cache_dir = Path(cache_dir)
        if not cache_dir.is_dir():
            raise UserError(
                f"{cache_dir}: no such feature cache; write one with "
                f"`python -m experiments.export DATA --backbone PATH_OR_ID --cache {cache_dir}`"
            )
        return [
            (path.parent.name, _read_provenance(path))
            for path in sorted(cache_dir.glob(f"{'[0-9a-f]' * NAME_LENGTH}/{PROVENANCE_FILE}"))
        ]

    @classmethod
    def open(cls, cache_dir: str | os.PathLike, name: str) -> "FeatureStore":
        """Opens the records of provenance `name` (a unique beginning of the name will do).

        Damaged shards are logged, listed in `.damaged`, and their records are absent.

        Raises:
            UserError: no such cache or provenance, with the names there are.
        """
        found = cls.provenances(cache_dir)
        matches = [entry for entry in found if entry[0].startswith(name)]
        if len(matches) != 1:
            names = ", ".join(known for known, _ in found) or "none"
            problem = "no features" if not matches else "several features"
            raise UserError(f"{cache_dir}: {problem} named {name!r}; there are: {names}")
        directory = Path(cache_dir) / matches[0][0]
        tables, damaged = _read_tables(directory, matches[0][1])
        store = cls(directory, matches[0][1], tables)
        store.damaged = damaged
        for error in damaged.values():
            logger.warning("%s", error)
        return store

    def _build_index(self) -> None:
        tables = self._tables
        keys = np.concatenate([np.empty((0, 2), np.uint64), *(table.keys for table in tables)])
        # A key that two writers wrote keeps its first copy: the sort is stable and shards come in name order.
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        keys = keys[order]
        first = np.ones(len(keys), dtype=bool)
        first[1:] = np.any(keys[1:] != keys[:-1], axis=1)
        order = order[first]
        self._keys = keys[first]
        self._high = np.ascontiguousarray(self._keys[:, 0])
        starts = np.cumsum([0, *(len(table.keys) for table in tables)])
        self._shard_of = (np.searchsorted(starts, order, side="right") - 1).astype(np.int32)
        begins = [table.offsets[:-1] for table in tables]
        ends = [table.offsets[1:] for table in tables]
        empty = np.empty(0, np.int64)
        self._begin = np.concatenate([empty, *begins])[order]
        self._end = np.concatenate([empty, *ends])[order]
        self._checksum = np.concatenate([np.empty(0, np.uint32), *(table.checksums for table in tables)])[
            order
        ]
        self._checked = np.zeros(len(order), dtype=bool)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def shard_paths(self) -> list[Path]:
        """The shards that were opened."""
        return [table.path for table in self._tables]

    @property
    def keys(self) -> list[str]:
        """All keys, hex, ascending."""
        return shards.unpack_keys(self._keys)

    @property
    def width(self) -> int:
        """Feature width V; 0 when the store is empty."""
        return self._tables[0].width if self._tables else 0

    @property
    def dtype(self) -> np.dtype:
        """Storage type of the features."""
        return shards.storage_dtype(self.provenance.dtype)

    def positions(self, keys: Sequence[str]) -> np.ndarray:
        """Returns the int64 position of each key for `read_at`, -1 where it is absent.

        Looking keys up once and reading by position keeps text out of a training loop.
        """
        wanted = shards.pack_keys(list(keys))
        position = np.searchsorted(self._high, wanted[:, 0])
        # Keys that share their first 64 bits lie side by side; step along them.
        while True:
            inside = position < len(self._keys)
            here = self._keys[np.where(inside, position, 0)] if len(self._keys) else np.zeros_like(wanted)
            same_high = inside & (here[:, 0] == wanted[:, 0])
            step = same_high & (here[:, 1] < wanted[:, 1])
            if not step.any():
                found = same_high & (here[:, 1] == wanted[:, 1])
                return np.where(found, position, -1).astype(np.int64)
            position = position + step

    def contains(self, keys: Sequence[str]) -> np.ndarray:
        """Returns bool (len(keys),): whether each key has a record."""
        return self.positions(keys) >= 0

    def num_slots(self, positions: np.ndarray) -> np.ndarray:
        """Returns int64: the number of slots of the records at `positions`."""
        return self._end[positions] - self._begin[positions]

    def read(self, keys: Sequence[str]) -> list[np.ndarray]:
        """Returns the records of `keys`: read-only views (n_slots, V) of the memory map.

        Raises:
            KeyError: a key is absent.
            DamagedShardError: a record's bytes do not match its checksum.
        """
        positions = self.positions(keys)
        if (positions < 0).any():
            raise KeyError(keys[int(np.argmax(positions < 0))])
        return self.read_at(positions)

    def read_at(self, positions: np.ndarray) -> list[np.ndarray]:
        """Returns the records at `positions`, which must be valid (see `positions`, `read`)."""
        positions = np.asarray(positions, dtype=np.int64)
        if positions.size and positions.min() < 0:
            raise IndexError("negative record position: the key is absent")
        records = [
            self._features(shard)[begin:end]
            for shard, begin, end in zip(
                self._shard_of[positions].tolist(),
                self._begin[positions].tolist(),
                self._end[positions].tolist(),
                strict=True,
            )
        ]
        for i in np.flatnonzero(~self._checked[positions]).tolist():
            position = positions[i]
            if shards.record_checksum(self._keys[position], records[i]) != self._checksum[position]:
                path = self._tables[self._shard_of[position]].path
                key = shards.unpack_keys(self._keys[position : position + 1])[0]
                raise DamagedShardError(path, f"record {key} does not match its checksum")
            self._checked[position] = True
        return records

    def _features(self, shard: int) -> np.ndarray:
        with self._lock:
            features = self._maps.get(shard)
            if features is None:
                features = self._maps[shard] = shards.map_features(self._tables[shard])
                if len(self._maps) > self._max_maps:
                    self._maps.popitem(last=False)
            return features

    def mark_used(self, positions: np.ndarray) -> None:
        """Notes that the records at `positions` (n,) are in use now, so that `gc` removes their shards last.

        Absent records (-1) are passed over.
        The note is the shards' modification time. A cache that may not be written to is left as it is.
        """
        for shard in np.unique(self._shard_of[positions[positions >= 0]]):
            try:
                os.utime(self._tables[shard].path)
            except OSError as error:
                logger.debug("use of %s not noted: %s", self._tables[shard].path, error)
                return


class ShardWriter:
    """Collects records of one provenance and writes them as shards. One per process; no locks needed.

    max_bytes: features held back at most; a fuller shard is written by `add` itself.
    """

    def __init__(self, cache_dir: str | os.PathLike, provenance: Provenance, *, max_bytes: int = 64 << 20):
        self.directory = prepare_directory(cache_dir, provenance)
        self.provenance = provenance
        self._max_bytes = max_bytes
        self._dtype = shards.storage_dtype(provenance.dtype)
        self._clear()

    def _clear(self) -> None:
        self._keys: list[str] = []
        self._arrays: list[np.ndarray] = []
        self._prompts: dict[str, int] = {}
        self.num_bytes = 0
        """Size of the features that wait for `flush`."""

    def __len__(self) -> int:
        """The number of records that wait for `flush`."""
        return len(self._keys)

    def add(self, key: str, features: np.ndarray, *, prompt: str | None = None) -> None:
        """Adds one record. features: (n_slots, V), any float type; prompt: shown by `cache stats`.

        Raises:
            UserError: a value is not finite in the storage type.
        """
        if features.ndim != 2 or (self._arrays and features.shape[1] != self._arrays[0].shape[1]):
            raise ValueError(f"features of shape {features.shape} do not fit this shard")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(features.astype(self._dtype))
        if not np.isfinite(stored.astype(np.float32)).all():
            if np.isfinite(features.astype(np.float32)).all():
                largest = float(np.abs(features.astype(np.float32)).max())
                raise UserError(
                    f"a feature of magnitude {largest:.3g} does not fit {self.provenance.dtype}; "
                    "export with --dtype bfloat16"
                )
            raise UserError(
                f"record {key} has features that are not finite; the backbone's weights or its compute type "
                "are at fault (try --compute-dtype float32)"
            )
        self._keys.append(key)
        self._arrays.append(stored)
        if prompt is not None:
            self._prompts[prompt] = self._prompts.get(prompt, 0) + 1
        self.num_bytes += stored.nbytes
        if self.num_bytes >= self._max_bytes:
            self.flush()

    def flush(self) -> Path | None:
        """Writes what was added since the last flush as one shard; returns its path, or None."""
        if not self._keys:
            return None
        path = shards.write_shard(
            self.directory,
            self._keys,
            self._arrays,
            provenance_json=self.provenance.to_json(),
            prompts=self._prompts,
        )
        self._clear()
        return path


def prepare_directory(cache_dir: str | os.PathLike, provenance: Provenance) -> Path:
    """Creates the directory of a provenance with its provenance.json, unless they exist; returns it.

    Raises:
        UserError: the place cannot be written to, or holds another provenance under this name.
    """
    directory = Path(cache_dir) / provenance.name()
    path = directory / PROVENANCE_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            replace_text(path, provenance.to_json() + "\n")
    except OSError as error:
        raise UserError(f"{directory}: cannot write the feature cache here ({error})") from error
    if _read_provenance(path).digest() != provenance.digest():
        raise UserError(f"{path}: holds another provenance under the same name; export into a new directory")
    return directory


def shard_paths(directory: Path) -> list[Path]:
    """Returns the shards of one provenance directory, sorted by name."""
    return sorted(directory.glob(f"{shards.PREFIX}*{shards.SUFFIX}"))


def _read_provenance(path: Path) -> Provenance:
    provenance = Provenance.from_json(path.read_text(encoding="utf-8"), source=str(path))
    if path.parent.name != provenance.name():
        raise UserError(f"{path}: belongs into a directory named {provenance.name()}; rename it")
    return provenance


def _read_tables(
    directory: Path, provenance: Provenance
) -> tuple[list[ShardTable], dict[Path, DamagedShardError]]:
    tables: list[ShardTable] = []
    damaged: dict[Path, DamagedShardError] = {}
    expected_dtype = shards.storage_dtype(provenance.dtype)
    for path in shard_paths(directory):
        try:
            table = shards.read_table(path)
            if table.dtype != expected_dtype or table.width != (tables or [table])[0].width:
                raise DamagedShardError(
                    path, f"features of {table.dtype} and width {table.width} are foreign here"
                )
            tables.append(table)
        except DamagedShardError as error:
            damaged[path] = error
        except FileNotFoundError:
            # Another process has set the shard aside between listing and opening.
            logger.debug("%s has gone", path)
    return tables, damaged
