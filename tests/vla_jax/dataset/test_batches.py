import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_cache.store import ShardWriter
from tests.vla_jax.recordings.recorded_episodes import write_data_set, write_windows_episode
from vla_jax.contracts.provenance import Provenance
from vla_jax.dataset.batches import BatchLoader, ProcessShare, SampleOrder, make_batch, sequential_batches
from vla_jax.dataset.feature_table import FeatureTable, record_keys
from vla_jax.dataset.preparation import PrepareOptions, prepare
from vla_jax.errors import UserError
from vla_jax.reference.cached_files import imported_provenance

WIDTH = 6


def provenance(pooling="grid", grid=2):
    return Provenance(
        "backbone", "tiny", None, {"size": {"longest_edge": 230400}}, "template", pooling=pooling, grid=grid
    )


def fill_cache(dataset, cache, made_by, skip=0):
    """Each record's features hold its own number, slot by slot."""
    required = dataset.required_records()[skip:]
    writer = ShardWriter(cache, made_by)
    for key, index in zip(record_keys(dataset, required, made_by), required, strict=True):
        num_images = len(dataset.records[int(index)].images)
        num_slots = {"grid": made_by.grid**2 * num_images + 1, "tokens": 5 + num_images}.get(
            made_by.pooling, 1
        )
        slots = np.arange(num_slots)[:, None] / 16 + np.zeros((1, WIDTH))
        writer.add(key, slots + index)
    writer.flush()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = write_data_set(tmp_path_factory.mktemp("source"), 4)
    # View1 is absent here, so that slots of View2 must not slip into its place.
    write_windows_episode(root / "Task_0" / "one_view", seed=9, views=("View2",), has_sensor=False)
    return prepare([str(root / "Task_0"), str(root / "Task_1")], root / "data", PrepareOptions()).dataset


@pytest.fixture(scope="module")
def table(dataset, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    fill_cache(dataset, cache, provenance())
    return FeatureTable.open(dataset, cache)


@pytest.mark.parametrize("max_bytes", [1 << 30, 0], ids=["in memory", "from the shards"])
def test_grid_slots_are_fixed_by_view(dataset, table, max_bytes, monkeypatch):
    monkeypatch.setattr("vla_jax.dataset.feature_table.MAX_TABLE_BYTES", max_bytes)
    table = FeatureTable.open(dataset, table._store.directory.parent)
    assert (table._table is None) == (max_bytes == 0)
    one_view = next(e for e in dataset.episodes if e.name == "one_view")
    two_views = next(e for e in dataset.episodes if e.name != "one_view")
    records = dataset.record_index(np.array([one_view.tick_start + 3, two_views.tick_start + 6]))
    vl, mask = table.gather(np.array([records[0], records[1], -1]))
    assert vl.shape == (3, 9, WIDTH)
    assert mask.tolist() == [[False] * 4 + [True] * 5, [True] * 9, [False] * 9]
    np.testing.assert_array_equal(vl[0, :, 0], [0] * 4 + [np.float16(records[0] + s / 16) for s in range(5)])
    np.testing.assert_array_equal(vl[1, :, 0], [np.float16(records[1] + s / 16) for s in range(9)])
    assert not vl[2].any()


@pytest.mark.parametrize(("pooling", "slots"), [("mean", 1), ("last", 1), ("tokens", 7)])
def test_other_poolings(dataset, tmp_path, pooling, slots):
    fill_cache(dataset, tmp_path, provenance(pooling))
    table = FeatureTable.open(dataset, tmp_path)
    assert (table.num_slots, table.width, table.spec.has_fixed_slots) == (slots, WIDTH, pooling != "tokens")
    vl, mask = table.gather(dataset.required_records())
    assert vl.shape[1:] == (slots, WIDTH)
    assert (
        mask.sum(axis=1)
        == (5 + dataset.record_views[dataset.required_records()].sum(axis=1) if slots > 1 else 1)
    ).all()
    assert not vl[~mask].any()


def test_missing_features_are_counted_and_the_command_named(dataset, tmp_path):
    fill_cache(dataset, tmp_path, provenance(), skip=3)
    with pytest.raises(
        UserError,
        match=r"3 of \d+ records .* first: .*jpg.*experiments.export .*data --cache .* --backbone tiny",
    ):
        FeatureTable.open(dataset, tmp_path)
    with pytest.raises(UserError, match="no such feature cache"):
        FeatureTable.open(dataset, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no features; export them with .*experiments.export"):
        FeatureTable.open(dataset, tmp_path / "empty")


def test_several_fitting_features_must_be_chosen_from(dataset, tmp_path):
    for made_by in (provenance(), provenance("mean")):
        fill_cache(dataset, tmp_path, made_by)
    with pytest.raises(
        UserError, match=r"choose with --features NAME: .*grid 2x2.*; .*mean|mean.*; .*grid 2x2"
    ):
        FeatureTable.open(dataset, tmp_path)
    assert FeatureTable.open(dataset, tmp_path, features=provenance("mean").name()[:6]).num_slots == 1
    # Features of another backbone that lack records do not stand in the way.
    with pytest.raises(UserError, match="holds no features named 'zz'"):
        FeatureTable.open(dataset, tmp_path, features="zz")


@pytest.fixture(scope="module")
def partial(dataset, tmp_path_factory):
    """A table of a cache that lacks the features of the first five records."""
    cache = tmp_path_factory.mktemp("partial")
    fill_cache(dataset, cache, provenance(), skip=5)
    return FeatureTable.open(dataset, cache, allow_missing=True)


def test_samples_without_features_are_left_out_when_allowed(dataset, partial):
    lost = dataset.required_records()[:5]
    assert (partial.num_missing, partial.num_required) == (5, len(dataset.required_records()))
    for split in ("train", "val", "all"):
        ticks = dataset.sample_ticks(split)
        kept = ticks[~np.isin(dataset.record_index(ticks), lost)]
        np.testing.assert_array_equal(partial.sample_ticks(split), kept)
        if not len(kept):
            continue
        shown = [batch.tick[batch.valid] for batch in sequential_batches(dataset, partial, split, 8)]
        np.testing.assert_array_equal(np.concatenate(shown), kept)
        order = loader(dataset, partial, split=split, batch_size=1).order
        np.testing.assert_array_equal(np.sort(order.at(np.arange(len(kept)))), kept)
    assert len(partial.sample_ticks("all")) < len(dataset.sample_ticks("all"))
    with pytest.raises(KeyError, match=f"record {lost[2]} has no features"):
        partial.gather(lost[2:])


def test_how_many_samples_are_left_is_said(dataset, table, partial):
    train, val = (len(partial.sample_ticks(split)) for split in ("train", "val"))
    note = partial.missing_note()
    assert note.startswith(
        f"5 of {partial.num_required} records that {dataset.path} needs have no features in "
    )
    assert f"left are {train} of {len(dataset.sample_ticks('train'))} training, {val} of " in note
    assert table.missing_note() == ""


def test_what_is_complete_goes_before_what_lacks_something(dataset, tmp_path):
    fill_cache(dataset, tmp_path, provenance(), skip=1)
    fill_cache(dataset, tmp_path, provenance("mean"))
    table = FeatureTable.open(dataset, tmp_path, allow_missing=True)
    assert (table.provenance["pooling"], table.num_missing) == ("mean", 0)


def test_several_partial_features_must_be_chosen_from_and_none_at_all_is_refused(dataset, tmp_path):
    for made_by in (provenance(), provenance("mean")):
        fill_cache(dataset, tmp_path / "two", made_by, skip=2)
    num = len(dataset.required_records())
    with pytest.raises(UserError, match=rf"choose with --features NAME: .*, {num - 2} of {num} records\)"):
        FeatureTable.open(dataset, tmp_path / "two", allow_missing=True)
    fill_cache(dataset, tmp_path / "none", provenance(), skip=num)
    with pytest.raises(UserError, match=rf"{num} of {num} records .*--backbone tiny`$"):
        FeatureTable.open(dataset, tmp_path / "none", allow_missing=True)


def test_missing_imported_features_are_not_asked_of_an_export(dataset, tmp_path):
    fill_cache(dataset, tmp_path, imported_provenance("a 3B model"), skip=1)
    with pytest.raises(
        UserError,
        match=r"1 of \d+ .*experiments.cache import .* --backbone 'a 3B model'`, or go on .*--allow-missing$",
    ):
        FeatureTable.open(dataset, tmp_path)


def test_other_samples_of_the_same_number_are_told_on_resuming(dataset, partial, table, caplog):
    samples = loader(dataset, table).order.identity
    assert samples != loader(dataset, partial).order.identity
    with iter(loader(dataset, table)) as batches:
        old = {name: value for name, value in batches.get_state().items() if name != "samples"}
        batches.set_state(old)
        assert not caplog.records
        batches.set_state(old | {"samples": "of another cache"})
    assert "data order has changed since it was saved (samples of another cache" in caplog.text


def loader(dataset, table, **options):
    return BatchLoader(dataset, table, **({"split": "train", "batch_size": 8, "seed": 3} | options))


def test_batches_have_the_contract_s_shapes(dataset, table):
    with iter(loader(dataset, table)) as batches:
        batch = next(batches)
    observation = batch.observation
    arrays = {name: getattr(observation, name) for name in ("vl", "vl_mask", "sensor", "has_sensor")}
    arrays |= {name: getattr(batch, name) for name in ("actions", "confidence", "tick", "valid")}
    arrays["previous_chunk"] = observation.previous_chunk
    assert {name: (value.shape, str(value.dtype)) for name, value in arrays.items()} == {
        "vl": ((8, 9, WIDTH), "float16"),
        "vl_mask": ((8, 9), "bool"),
        "sensor": ((8, 65, 1026), "float16"),
        "has_sensor": ((8,), "bool"),
        "actions": ((8, 8, 7), "float32"),
        "previous_chunk": ((8, 8, 7), "float32"),
        "confidence": ((8,), "float32"),
        "tick": ((8,), "int64"),
        "valid": ((8,), "bool"),
    }
    np.testing.assert_array_equal(batch.actions, dataset.actions(batch.tick))
    np.testing.assert_array_equal(
        observation.vl[:, -1, 0] // 1, dataset.record_index(batch.tick).astype(np.float16)
    )
    previous = dataset.previous_action(batch.tick)
    np.testing.assert_array_equal(observation.previous_chunk, previous[:, None].repeat(8, axis=1))


def test_what_is_resident_is_named_by_its_rows(dataset, table):
    ticks = dataset.sample_ticks("train")[:8]
    batch = make_batch(dataset, table, ticks, resident=("vl", "sensor"))
    assert batch.observation.vl is batch.observation.vl_mask is batch.observation.sensor is None
    np.testing.assert_array_equal(batch.observation.has_sensor, dataset.has_sensor(ticks))
    np.testing.assert_array_equal(table.records[batch.resident.vl], dataset.record_index(ticks))
    np.testing.assert_array_equal(batch.resident.sensor, dataset.sensor_rows(ticks))


def test_an_epoch_shows_every_sample_once_and_epochs_differ(dataset, table):
    ticks = dataset.sample_ticks("train")
    source = loader(dataset, table, batch_size=1)
    epochs = [
        np.concatenate([source.batch(e * len(ticks) + i).tick for i in range(len(ticks))]) for e in (0, 1)
    ]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), ticks)
        assert (epoch != ticks).any()
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_position_is_restored_exactly(dataset, table, num_threads):
    with iter(loader(dataset, table, num_threads=num_threads)) as batches:
        for _ in range(5):
            next(batches)
        state = batches.get_state()
        expected = [next(batches).tick for _ in range(4)]
    with iter(loader(dataset, table)) as batches:
        batches.set_state(state)
        np.testing.assert_array_equal([next(batches).tick for _ in range(4)], expected)
        assert batches.get_state()["next_sample"] == 9 * 8


def test_processes_share_a_batch(dataset, table):
    whole = loader(dataset, table).batch(7).tick
    shares = [loader(dataset, table, share=ProcessShare(i, 2)).batch(7).tick for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(shares), whole)
    with pytest.raises(UserError, match="does not divide"):
        loader(dataset, table, share=ProcessShare(0, 3))


def test_closing_ends_the_threads(dataset, table):
    before = set(threading.enumerate())
    batches = iter(loader(dataset, table, num_threads=3))
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_a_changed_order_is_told(dataset, table, caplog):
    with iter(loader(dataset, table)) as batches:
        state = batches.get_state()
        batches.set_state(state)
        assert not caplog.records
        batches.set_state(state | {"num_samples": 1})
    assert "data order has changed" in caplog.text


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_sequential_batches_show_all_samples_once(dataset, table, batch_size):
    ticks = dataset.sample_ticks("all")
    found = list(sequential_batches(dataset, table, "all", batch_size))
    assert all(len(batch.tick) == len(batch.valid) == batch_size for batch in found)
    np.testing.assert_array_equal(np.concatenate([b.tick[b.valid] for b in found]), ticks)


def test_processes_share_sequential_batches(dataset, table):
    whole = list(sequential_batches(dataset, table, "all", 6))
    shares = [list(sequential_batches(dataset, table, "all", 6, share=ProcessShare(i, 2))) for i in range(2)]
    for batch, first, second in zip(whole, *shares, strict=True):
        for name in ("tick", "valid"):
            np.testing.assert_array_equal(
                np.concatenate([getattr(first, name), getattr(second, name)]), getattr(batch, name)
            )


def test_source_weights_mix(dataset, table):
    first, second = sorted({entry.source for entry in dataset.episodes})
    source = np.array([entry.source for entry in dataset.episodes])
    weighted = loader(dataset, table, source_weights={first: 3.0}, batch_size=1)
    num = len(weighted.order)
    ticks = weighted.order.at(np.arange(20 * num))
    share = (source[dataset.ticks.episode[ticks]] == first).mean()
    size = np.array(
        [(source[dataset.ticks.episode[dataset.sample_ticks("train")]] == s).sum() for s in (first, second)]
    )
    np.testing.assert_allclose(share, 3 * size[0] / (3 * size[0] + size[1]), atol=0.01)
    with pytest.raises(UserError, match="no source named nowhere"):
        loader(dataset, table, source_weights={"nowhere": 2})
    with pytest.raises(UserError, match="positive"):
        loader(dataset, table, source_weights={first: 0.0})


def test_the_data_set_s_own_weights_hold_by_default(dataset, table, tmp_path):
    roots = [entry.source for entry in dataset.episodes]
    root = Path(roots[0]).parent
    options = PrepareOptions(weights={"Task_1": 4.0})
    weighted = prepare([str(root / "Task_0"), str(root / "Task_1")], tmp_path / "d", options).dataset
    batches = loader(weighted, FeatureTable.open(weighted, table._store.directory.parent), batch_size=1)
    ticks = batches.order.at(np.arange(20 * len(batches.order)))
    weights = np.array([entry.weight for entry in weighted.episodes])[weighted.ticks.episode]
    expected = weights[weighted.sample_ticks("train")]
    share = (weights[ticks] == 4).mean()
    assert set(weights) == {1.0, 4.0}
    np.testing.assert_allclose(share, expected[expected == 4].sum() / expected.sum(), atol=0.01)


@given(st.integers(1, 50), st.integers(0, 5), st.data())
def test_weighted_epochs_stay_near_their_expectation(num, seed, data):
    weights = np.array(data.draw(st.lists(st.floats(0.1, 5), min_size=num, max_size=num)))
    order = SampleOrder(np.arange(num), seed, weights)
    counts = np.bincount(order.at(np.arange(num)), minlength=num)
    assert counts.sum() == num
    assert (np.abs(counts - weights / weights.sum() * num) < 1 + 1e-9).all()


def test_the_order_s_identity_tells_weights_apart():
    ticks = np.arange(10)
    plain = SampleOrder(ticks, 0).identity
    assert SampleOrder(ticks, 0, np.full(10, 3.0)).identity == plain
    weights = np.r_[np.ones(5), np.full(5, 2.0)]
    weighted = SampleOrder(ticks, 0, weights).identity
    assert weighted != plain
    # Only the ratios count.
    assert SampleOrder(ticks, 0, 2 * weights).identity == weighted
    assert SampleOrder(ticks, 0, weights[::-1]).identity != weighted
