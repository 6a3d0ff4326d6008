"""How far all processes of an export are together, seen in the shards that each of them writes."""

from collections.abc import Iterable
from pathlib import Path

from feature_cache import shard as shards
from feature_cache.shard import DamagedShardError
from feature_cache.store import shard_paths


class SharedProgress:
    """Counts which records of a work list are done, by this process or, according to their shards, by others.

    Nothing is written for it: the others' records count when their shard appears, and what is killed leaves
    nothing behind that could mislead.

    directory: the provenance's directory in the cache.
    wanted: keys of all records to be done, by all processes.
    known: shards that were there when `wanted` was made, and so hold none of them.
    """

    def __init__(self, directory: Path, wanted: Iterable[str], known: Iterable[Path]) -> None:
        self._directory = directory
        self._left = set(wanted)
        self._seen = set(known)
        self.total = len(self._left)

    @property
    def num_done(self) -> int:
        """Records done by all processes together."""
        return self.total - len(self._left)

    def add(self, keys: Iterable[str]) -> None:
        """Notes what this process has done."""
        self._left.difference_update(keys)

    def look(self) -> None:
        """Counts the records of the shards that have appeared since the last call."""
        for path in shard_paths(self._directory):
            if path in self._seen:
                continue
            self._seen.add(path)
            try:
                self.add(shards.unpack_keys(shards.read_table(path).keys))
            except (DamagedShardError, FileNotFoundError):
                # Its records count as not done, and the next export writes them anew.
                continue
