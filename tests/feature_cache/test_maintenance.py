import os

import pytest

from feature_cache import shard as shards
from feature_cache.keys import record_key
from feature_cache.maintenance import collect_garbage, damaged_shards, merge, statistics
from feature_cache.store import FeatureStore, ShardWriter
from tests.feature_cache.test_store import features, flip_bit, provenance
from vla_jax.errors import UserError


def write(cache, indices, used=None, **changes):
    """Writes one shard with the records of prompts `prompt <index>` without images."""
    made_by = provenance(**changes)
    writer = ShardWriter(cache, made_by)
    for i in indices:
        writer.add(record_key(made_by.digest(), f"prompt {i}", []), features(i), prompt=f"prompt {i}")
    path = writer.flush()
    if used is not None:
        os.utime(path, (used, used))
    return path


def test_statistics_tell_what_is_in_a_cache(tmp_path):
    paths = [write(tmp_path, [0, 1], used=50), write(tmp_path, [1, 2, 3], used=90)]
    write(tmp_path, [5], pooling="mean", used=10)
    by_pooling = {entry.provenance.pooling: entry for entry in statistics(tmp_path)}
    grid = by_pooling["grid"]
    assert (grid.num_records, grid.num_shards, grid.last_used) == (5, 2, 90)
    assert grid.num_bytes == sum(path.stat().st_size for path in paths)
    assert next(iter(grid.prompts.items())) == ("prompt 1", 2)
    assert by_pooling["mean"].prompts == {"prompt 5": 1}
    paths[0].write_bytes(b"")
    (damaged,) = {entry.provenance.pooling: entry for entry in statistics(tmp_path)}["grid"].damaged
    assert damaged.path == paths[0]


def test_damaged_shards_are_named(tmp_path):
    sound, flipped, short = (write(tmp_path, [i]) for i in range(3))
    assert damaged_shards(tmp_path) == []
    flip_bit(flipped, -1 % flipped.stat().st_size)
    short.write_bytes(short.read_bytes()[:-1])
    assert {error.path for error in damaged_shards(tmp_path)} == {flipped, short}
    shards.verify(sound)


def test_the_least_recently_used_shards_go_first(tmp_path):
    old, new, middle = (write(tmp_path, [i], used=used) for i, used in enumerate([10, 30, 20]))
    size = new.stat().st_size
    summary = collect_garbage(tmp_path, 2 * size + size // 2)
    assert summary.removed == (old,)
    assert (summary.num_bytes_before, summary.num_bytes_after) == (3 * size, 2 * size)
    assert collect_garbage(tmp_path, 10 * size).removed == ()
    assert collect_garbage(tmp_path, size).removed == (middle,)


def test_what_a_data_set_needs_stays_whatever_the_limit(tmp_path):
    needed = write(tmp_path, [0, 1], used=1)
    also_needed = write(tmp_path, [1], used=1, pooling="mean")
    write(tmp_path, [2], used=99)
    summary = collect_garbage(tmp_path, 0, [("prompt 1", [])])
    assert needed.exists()
    assert also_needed.exists()
    assert len(summary.removed) == 1
    assert summary.num_bytes_after == needed.stat().st_size + also_needed.stat().st_size


def test_leftovers_of_killed_writers_and_damaged_shards_always_go(tmp_path):
    path = write(tmp_path, [0], used=1_000_000)
    abandoned, being_written = path.with_name(".tmp-1-a"), path.with_name(".tmp-2-b")
    aside = path.with_name(path.name + ".damaged")
    for leftover, modified in ((abandoned, 0), (being_written, 999_999), (aside, 999_999)):
        leftover.write_bytes(b"half")
        os.utime(leftover, (modified, modified))
    assert set(collect_garbage(tmp_path, 1 << 40, now=1_000_000).removed) == {abandoned, aside}
    assert being_written.exists()
    assert path.exists()


def test_merging_copies_what_is_sound_and_new(tmp_path):
    write(tmp_path / "a", [0, 1])
    write(tmp_path / "b", [0, 1])
    write(tmp_path / "b", [2], layer=-2)
    damaged = write(tmp_path / "b", [3])
    flip_bit(damaged, 500)
    summary = merge(tmp_path / "a", tmp_path / "b")
    assert (summary.num_copied, summary.num_present) == (1, 1)
    assert [error.path for error in summary.damaged] == [damaged]
    names = [name for name, _ in FeatureStore.provenances(tmp_path / "a")]
    assert sorted(names) == sorted([provenance().name(), provenance(layer=-2).name()])
    assert len(FeatureStore.open(tmp_path / "a", provenance(layer=-2).name())) == 1
    assert merge(tmp_path / "a", tmp_path / "b").num_copied == 0
    assert merge(tmp_path / "new", tmp_path / "a").num_copied == 2
    assert damaged_shards(tmp_path / "new") == []


def test_a_missing_cache_is_one_line(tmp_path):
    for act in (statistics, damaged_shards, lambda cache: collect_garbage(cache, 0)):
        with pytest.raises(UserError, match="no such feature cache"):
            act(tmp_path / "missing")
    with pytest.raises(UserError, match="no such feature cache"):
        merge(tmp_path / "new", tmp_path / "missing")
