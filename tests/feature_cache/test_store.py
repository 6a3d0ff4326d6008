import logging
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from feature_cache import shard as shards
from feature_cache.keys import record_key
from feature_cache.shard import DamagedShardError
from feature_cache.store import FeatureStore, ShardWriter, shard_paths
from vla_jax.contracts.provenance import Provenance
from vla_jax.errors import UserError

WIDTH = 6


def provenance(**changes):
    fields = {
        "backbone": "a" * 64,
        "backbone_name": "tiny",
        "adapter": None,
        "processor": {},
        "chat_template": "c" * 64,
    }
    return Provenance(**{**fields, **changes})


def key(i):
    return record_key("p", str(i), [])


def features(i, slots=3):
    return np.random.default_rng(i).normal(size=(slots, WIDTH)).astype(np.float16)


def write(cache, indices, **changes):
    writer = ShardWriter(cache, provenance(**changes))
    for i in indices:
        writer.add(key(i), features(i), prompt=f"prompt {i % 2}")
    return writer.flush()


def open_store(cache):
    return FeatureStore.open(cache, provenance().name())


def test_records_come_back_in_the_order_asked(tmp_path):
    write(tmp_path, range(5))
    write(tmp_path, range(5, 9))
    store = open_store(tmp_path)
    assert len(store) == 9
    assert store.width == WIDTH
    for i, record in zip([7, 0, 7, 3], store.read([key(7), key(0), key(7), key(3)]), strict=True):
        np.testing.assert_array_equal(record, features(i))
        assert not record.flags.writeable


def test_contains_tells_present_from_absent(tmp_path):
    write(tmp_path, [1, 2])
    store = open_store(tmp_path)
    np.testing.assert_array_equal(store.contains([key(2), key(3), key(1)]), [True, False, True])
    assert store.contains([]).shape == (0,)
    assert sorted(store.keys) == sorted([key(1), key(2)])
    with pytest.raises(KeyError):
        store.read([key(3)])
    with pytest.raises(IndexError):
        store.read_at(store.positions([key(3)]))


def test_an_empty_cache_contains_nothing(tmp_path):
    ShardWriter(tmp_path, provenance())
    store = open_store(tmp_path)
    assert len(store) == 0
    assert not store.contains([key(1)]).any()


@settings(max_examples=25)
@given(st.lists(st.lists(st.integers(0, 7), max_size=4), max_size=4))
def test_any_division_into_shards_reads_alike(tmp_path_factory, groups):
    """Ragged records, records written twice and shards of any size."""
    cache = tmp_path_factory.mktemp("cache")
    writer = ShardWriter(cache, provenance())
    for group in groups:
        for i in group:
            writer.add(key(i), features(i, slots=i))
        writer.flush()
    store = open_store(cache)
    wanted = sorted({i for group in groups for i in group})
    assert len(store) == len(wanted)
    positions = store.positions([key(i) for i in wanted])
    np.testing.assert_array_equal(store.num_slots(positions), wanted)
    for i, record in zip(wanted, store.read_at(positions), strict=True):
        np.testing.assert_array_equal(record, features(i, slots=i))


def test_keys_that_share_their_first_half_are_told_apart(tmp_path):
    keys = ["ab" * 8 + f"{i:016x}" for i in range(5)]
    writer = ShardWriter(tmp_path, provenance())
    for i in [3, 1, 4]:
        writer.add(keys[i], features(i))
    writer.flush()
    store = open_store(tmp_path)
    np.testing.assert_array_equal(store.contains(keys), [False, True, False, True, True])
    for i, record in zip([1, 3, 4], store.read([keys[1], keys[3], keys[4]]), strict=True):
        np.testing.assert_array_equal(record, features(i))


def test_bfloat16_is_stored_and_read(tmp_path):
    writer = ShardWriter(tmp_path, provenance(dtype="bfloat16"))
    values = np.array([[1.0, -2.5, 1e30]], np.float32)
    writer.add(key(0), values)
    writer.flush()
    store = FeatureStore.open(tmp_path, provenance(dtype="bfloat16").name())
    (record,) = store.read([key(0)])
    assert record.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(record, values.astype(ml_dtypes.bfloat16))


def test_values_beyond_the_storage_type_are_refused(tmp_path):
    writer = ShardWriter(tmp_path, provenance())
    with pytest.raises(
        UserError, match=r"magnitude 1e\+05 does not fit float16; export with --dtype bfloat16"
    ):
        writer.add(key(0), np.array([[1e5]]))
    with pytest.raises(UserError, match="not finite"):
        writer.add(key(0), np.array([[np.nan]]))


def test_a_full_shard_is_written_without_being_asked(tmp_path):
    writer = ShardWriter(tmp_path, provenance(), max_bytes=2 * features(0).nbytes)
    for i in range(5):
        writer.add(key(i), features(i))
    assert len(shard_paths(writer.directory)) == 2
    assert len(writer) == 1


def test_shards_are_plain_safetensors(tmp_path):
    path = write(tmp_path, [0, 1])
    with safe_open(path, framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("features"), np.concatenate([features(0), features(1)]))
    assert shards.read_table(path).prompts == {"prompt 0": 1, "prompt 1": 1}


def test_equal_records_make_equal_files(tmp_path):
    assert write(tmp_path / "a", range(4)).name == write(tmp_path / "b", range(4)).name


def test_writers_side_by_side_lose_nothing(tmp_path):
    def work(rank):
        for start in range(rank * 20, rank * 20 + 20, 4):
            write(tmp_path, range(start, start + 4))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert open_store(tmp_path).contains([key(i) for i in range(80)]).all()


def test_many_shards_need_few_file_descriptors(tmp_path):
    for i in range(40):
        write(tmp_path, [i])
    store = open_store(tmp_path)
    store._max_maps = 4
    for i, record in enumerate(store.read([key(i) for i in range(40)])):
        np.testing.assert_array_equal(record, features(i))
    assert len(store._maps) == 4


def flip_bit(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def test_a_flipped_bit_in_the_features_is_found_on_reading(tmp_path):
    path = write(tmp_path, range(4))
    table = shards.read_table(path)
    flip_bit(path, table.features_start + 2 * 3 * WIDTH * 2 + 5)
    store = open_store(tmp_path)
    np.testing.assert_array_equal(store.read([key(0)])[0], features(0))
    with pytest.raises(DamagedShardError, match=path.name):
        store.read([key(1), key(2)])


@settings(max_examples=60)
@given(st.data())
def test_any_flipped_bit_is_found_by_verify_and_never_read(tmp_path_factory, data):
    cache = tmp_path_factory.mktemp("cache")
    path = write(cache, range(3))
    flip_bit(path, data.draw(st.integers(0, path.stat().st_size - 1)))
    with pytest.raises(DamagedShardError, match=path.name):
        shards.verify(path)
    store = open_store(cache)
    for i in range(3):
        try:
            (record,) = store.read([key(i)])
        except (KeyError, DamagedShardError):
            continue
        np.testing.assert_array_equal(record, features(i))


@settings(max_examples=30)
@given(st.data())
def test_any_truncation_is_named_on_opening(tmp_path_factory, data):
    cache = tmp_path_factory.mktemp("cache")
    path = write(cache, range(3))
    path.write_bytes(path.read_bytes()[: data.draw(st.integers(0, path.stat().st_size - 1))])
    with pytest.raises(DamagedShardError, match=path.name):
        shards.verify(path)
    store = open_store(cache)
    assert list(store.damaged) == [path]
    assert not store.contains([key(i) for i in range(3)]).any()


def test_damage_is_logged_on_opening(tmp_path, caplog):
    path = write(tmp_path, [0])
    write(tmp_path, [1])
    path.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        store = open_store(tmp_path)
    assert str(path) in caplog.text
    np.testing.assert_array_equal(store.contains([key(0), key(1)]), [False, True])


def test_an_unfinished_shard_is_ignored(tmp_path):
    path = write(tmp_path, [0])
    (path.parent / ".tmp-1-abc").write_bytes(b"half")
    store = open_store(tmp_path)
    assert len(store) == 1
    assert not store.damaged


def test_provenances_are_listed_and_opened_by_a_unique_beginning(tmp_path):
    write(tmp_path, [0])
    write(tmp_path, [0], layer=-2)
    names = [name for name, _ in FeatureStore.provenances(tmp_path)]
    assert names == sorted([provenance().name(), provenance(layer=-2).name()])
    assert FeatureStore.open(tmp_path, names[0][:8]).provenance.name() == names[0]
    with pytest.raises(UserError, match=f"several features named ''; there are: {names[0]}, {names[1]}"):
        FeatureStore.open(tmp_path, "")
    with pytest.raises(UserError, match="no features named 'zz'"):
        FeatureStore.open(tmp_path, "zz")
    with pytest.raises(UserError, match="no such feature cache"):
        FeatureStore.provenances(tmp_path / "missing")


def test_shards_of_another_type_do_not_mix(tmp_path):
    path = write(tmp_path, [0], dtype="bfloat16")
    write(tmp_path, [1])
    moved = tmp_path / provenance().name() / path.name
    path.rename(moved)
    assert list(open_store(tmp_path).damaged) == [moved]


def test_using_records_marks_their_shards(tmp_path):
    import os

    first, second = write(tmp_path, [0]), write(tmp_path, [1])
    for path in (first, second):
        os.utime(path, (1, 1))
    store = open_store(tmp_path)
    store.mark_used(store.positions([key(1), key(5)]))
    assert first.stat().st_mtime == 1
    assert second.stat().st_mtime > 1
    shards.verify(second)
