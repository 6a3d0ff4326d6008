"""Looking after a cache: what is in it, whether it is sound, making room, and merging caches of several machines."""

import dataclasses
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from feature_cache import shard as shards
from feature_cache.keys import record_key
from feature_cache.shard import DamagedShardError
from feature_cache.store import FeatureStore, prepare_directory, shard_paths
from vla_jax.contracts.provenance import Provenance
from vla_jax.errors import UserError
from vla_jax.storage.replacing import leftovers, replace_file

# A temporary file this old belongs to a writer that was killed: shards take seconds to write.
_ABANDONED_SECONDS = 24 * 3600.0


@dataclasses.dataclass(frozen=True)
class ProvenanceStatistics:
    """What one provenance directory holds."""

    name: str
    provenance: Provenance
    num_records: int
    num_shards: int
    num_bytes: int
    last_used: float | None
    """Unix time of the last export or training run that used a shard; None without shards."""
    prompts: dict[str, int]
    """Prompt → number of records, most frequent first."""
    damaged: tuple[DamagedShardError, ...]
    """Shards that cannot be opened (`verify` looks further, at every byte)."""


def statistics(cache_dir: str | os.PathLike) -> list[ProvenanceStatistics]:
    """Returns the statistics of every provenance in a cache, from the shards' tables.

    Raises:
        UserError: no such cache.
    """
    found = []
    for name, provenance in FeatureStore.provenances(cache_dir):
        prompts: Counter[str] = Counter()
        num_records = num_bytes = num_shards = 0
        last_used, damaged = None, []
        for path in shard_paths(Path(cache_dir) / name):
            try:
                table = shards.read_table(path)
            except DamagedShardError as error:
                damaged.append(error)
                continue
            num_shards += 1
            num_records += len(table.keys)
            num_bytes += table.num_bytes
            prompts.update(table.prompts)
            last_used = max(last_used or 0.0, path.stat().st_mtime)
        found.append(
            ProvenanceStatistics(
                name,
                provenance,
                num_records,
                num_shards,
                num_bytes,
                last_used,
                dict(prompts.most_common()),
                tuple(damaged),
            )
        )
    return found


def damaged_shards(cache_dir: str | os.PathLike) -> list[DamagedShardError]:
    """Compares every byte of every shard with its checksum; returns one error per damaged shard."""
    directories = [Path(cache_dir) / name for name, _ in FeatureStore.provenances(cache_dir)]
    return shards.find_damaged(path for directory in directories for path in shard_paths(directory))


@dataclasses.dataclass(frozen=True)
class CollectionSummary:
    """What `collect_garbage` did."""

    removed: tuple[Path, ...]
    num_bytes_before: int
    num_bytes_after: int
    """Larger than the limit when what is needed does not fit into it."""


def collect_garbage(
    cache_dir: str | os.PathLike,
    limit_bytes: int,
    needed: Sequence[tuple[str, Sequence[str]]] = (),
    *,
    dry_run: bool = False,
    now: float | None = None,
) -> CollectionSummary:
    """Removes shards, least recently used first, until the cache has at most `limit_bytes`.

    needed: (prompt, image digests in view order) of records that must stay; no shard with one of them is removed,
        whatever its provenance. Shards that were set aside as damaged and files of killed writers always go.
    dry_run: say what would be done, and do nothing. now: Unix time, for tests.

    Raises:
        UserError: no such cache, or the limit is negative.
    """
    if limit_bytes < 0:
        raise UserError(f"a cache cannot come down to {limit_bytes} bytes; give 0 or more")
    now = time.time() if now is None else now
    removed: list[Path] = []
    candidates: list[tuple[float, int, Path]] = []
    num_bytes = 0
    for name, provenance in FeatureStore.provenances(cache_dir):
        directory = Path(cache_dir) / name
        abandoned = leftovers(directory, older_than_s=_ABANDONED_SECONDS, now=now)
        for path in [*abandoned, *directory.glob("*.damaged")]:
            num_bytes += path.stat().st_size
            removed.append(path)
        digest = provenance.digest()
        kept = {record_key(digest, prompt, images) for prompt, images in needed}
        for path in shard_paths(directory):
            status = path.stat()
            num_bytes += status.st_size
            if kept.isdisjoint(_keys(path)):
                candidates.append((status.st_mtime, status.st_size, path))
    left = num_bytes - sum(path.stat().st_size for path in removed)
    for _, size, path in sorted(candidates):
        if left <= limit_bytes:
            break
        removed.append(path)
        left -= size
    for path in removed if not dry_run else ():
        path.unlink(missing_ok=True)
    return CollectionSummary(tuple(removed), num_bytes, left)


def _keys(path: Path) -> list[str]:
    try:
        return shards.unpack_keys(shards.read_table(path).keys)
    except DamagedShardError:
        # It holds nothing that anybody could use.
        return []


@dataclasses.dataclass(frozen=True)
class MergeSummary:
    """What `merge` did."""

    num_copied: int
    num_present: int
    """Shards that were there already."""
    damaged: tuple[DamagedShardError, ...]
    """Shards of the source that were left out."""


def merge(cache_dir: str | os.PathLike, source_dir: str | os.PathLike) -> MergeSummary:
    """Copies every sound shard of another cache into this one, which is made if it does not exist.

    Shards are named by their content, so merging twice copies nothing and no shard overwrites another.
    """
    num_copied = num_present = 0
    damaged = []
    for name, provenance in FeatureStore.provenances(source_dir):
        directory = prepare_directory(cache_dir, provenance)
        for path in shard_paths(Path(source_dir) / name):
            target = directory / path.name
            if target.exists():
                num_present += 1
                continue
            try:
                shards.verify(path)
            except DamagedShardError as error:
                damaged.append(error)
                continue
            with path.open("rb") as source:
                replace_file(target, partial(shutil.copyfileobj, source))
            num_copied += 1
    return MergeSummary(num_copied, num_present, tuple(damaged))
