"""Features of an age that is drawn: of the sample's own episode, as old as they can be, and drawn anew by nothing."""

import numpy as np
import pytest

from tests.vla_jax.dataset.test_batches import fill_cache, provenance
from tests.vla_jax.recordings.recorded_episodes import write_windows_episode
from vla_jax.dataset.batches import BatchLoader, ProcessShare, make_batch, sequential_batches
from vla_jax.dataset.feature_ages import AgedFeatures, uniform_draws
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.preparation import PrepareOptions, prepare


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("aged")
    for i, seconds in enumerate((5.0, 2.0, 4.0)):
        write_windows_episode(root / "s" / "Task" / f"e{i}", seed=i, seconds=seconds, has_sensor=False)
    return prepare([str(root / "s")], root / "data", PrepareOptions(val_fraction=0.34)).dataset


@pytest.fixture(scope="module")
def table(dataset, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    fill_cache(dataset, cache, provenance())
    return FeatureTable.open(dataset, cache)


@pytest.fixture(scope="module")
def partial(dataset, tmp_path_factory):
    cache = tmp_path_factory.mktemp("partial")
    fill_cache(dataset, cache, provenance(), skip=4)
    return FeatureTable.open(dataset, cache, allow_missing=True)


def closest(dataset, table, tick, age):
    """By hand: of the records of the tick's episode up to its own, the one whose age is closest; the newest of two."""
    own = dataset.record_index(np.array([tick]))[0]
    episodes = dataset.array("instant_episode")
    candidates = [r for r in table.records.tolist() if r <= own and episodes[r] == episodes[own]]
    ages = [dataset.ticks.time[tick] - dataset.record_time[r] for r in candidates]
    return max(zip(candidates, ages, strict=True), key=lambda entry: (-abs(entry[1] - age), entry[0]))[0]


@pytest.mark.parametrize("age", [0.0, 0.33, 0.8, 2.9])
@pytest.mark.parametrize("kind", ["table", "partial"])
def test_the_record_of_an_age_is_the_closest_of_its_own_episode(dataset, kind, age, request):
    table = request.getfixturevalue(kind)
    ticks = table.sample_ticks("all")
    chosen = AgedFeatures(dataset, table, (age,)).records(ticks, ticks)
    assert chosen.tolist() == [closest(dataset, table, tick, age) for tick in ticks.tolist()]


def test_no_age_is_the_newest_refresh_and_a_beginning_has_the_oldest_there_is(dataset, table):
    ticks = table.sample_ticks("all")
    newest = AgedFeatures(dataset, table, (0.0,)).records(ticks, ticks)
    np.testing.assert_array_equal(newest, dataset.record_index(ticks))
    old = AgedFeatures(dataset, table, (1.2,)).records(ticks, ticks)
    ages = dataset.ticks.time[ticks] - dataset.record_time[old]
    begin = np.array([entry.tick_start for entry in dataset.episodes])[dataset.ticks.episode[ticks]]
    late = ticks - begin >= 18
    assert np.abs(ages[late] - 1.2).max() <= 0.3 / 2 + 0.1  # Half a refresh, and what pictures come unevenly.
    episodes = dataset.array("instant_episode")[table.records]
    first = table.records[np.searchsorted(episodes, dataset.ticks.episode[ticks])]
    early = ticks - begin < 9
    np.testing.assert_array_equal(old[early], first[early])


def test_record_times_are_those_of_the_oldest_picture(dataset):
    images, times = dataset.array("instant_images"), dataset.array("image_time")
    for record in (0, len(images) // 2, len(images) - 1):
        assert dataset.record_time[record] == min(times[row] for row in images[record] if row >= 0)


def test_draws_are_uniform_and_of_seed_and_position_alone():
    draws = uniform_draws(7, np.arange(100_000))
    assert 0 <= draws.min() < draws.max() < 1
    counts, _ = np.histogram(draws, 50, (0, 1))
    # χ² of 49 degrees of freedom is above 90 once in 3000 times; the draws are always these.
    assert (np.square(counts - 2000) / 2000).sum() < 90
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.01
    order = np.array([5, 99_999, 0, 5])
    np.testing.assert_array_equal(uniform_draws(7, order), draws[order])
    assert (uniform_draws(8, order) != draws[order]).all()


def test_ages_follow_their_quantiles(dataset, table):
    positions = np.arange(20_000)
    assert (AgedFeatures(dataset, table, (0.7,)).drawn(positions) == 0.7).all()
    between = AgedFeatures(dataset, table, (0.5, 1.5)).drawn(positions)
    np.testing.assert_allclose(np.quantile(between, [0, 0.25, 0.5, 1]), [0.5, 0.75, 1, 1.5], atol=0.02)
    measured = AgedFeatures(dataset, table, (0.2, 0.3, 2.0)).drawn(positions)
    np.testing.assert_allclose(np.quantile(measured, [0, 0.25, 0.5, 1]), [0.2, 0.25, 0.3, 2.0], atol=0.02)


def test_batches_hold_the_features_and_tell_their_age(dataset, table):
    ticks = table.sample_ticks("all")
    records = AgedFeatures(dataset, table, (1.0,)).records(ticks, ticks)
    batch = make_batch(dataset, table, ticks, records=records)
    np.testing.assert_array_equal(batch.observation.vl[:, -1, 0] // 1, records.astype(np.float16))
    ages = dataset.ticks.time[ticks] - dataset.record_time[records]
    np.testing.assert_allclose(batch.observation.feature_age, ages, atol=1e-6)
    assert batch.observation.feature_age.dtype == np.float32
    newest = make_batch(dataset, table, ticks).observation.feature_age
    assert newest.min() >= 0
    assert newest.max() < 0.6
    # Where the devices hold the features, the same rows.
    resident = make_batch(dataset, table, ticks, records=records, resident=("vl",))
    np.testing.assert_array_equal(table.records[resident.resident.vl], records)


def test_draws_survive_another_batch_size_and_several_processes(dataset, table):
    def ages(batch_size, share, count):
        aged = AgedFeatures(dataset, table, (0.0, 2.0), seed=3)
        loader = BatchLoader(
            dataset, table, split="train", batch_size=batch_size, seed=3, aged=aged, share=share
        )
        batches = [loader.batch(i) for i in range(count)]
        return np.concatenate([b.tick for b in batches]), np.concatenate(
            [b.observation.feature_age for b in batches]
        )

    ticks, whole = ages(12, ProcessShare(), 10)
    assert len(set(whole.tolist())) > 20
    for found, expected in zip(ages(6, ProcessShare(), 20), (ticks, whole), strict=True):
        np.testing.assert_array_equal(found, expected)
    second = ages(12, ProcessShare(1, 2), 10)[1]
    np.testing.assert_array_equal(second.reshape(10, 6), whole.reshape(10, 12)[:, 6:])


def test_validation_draws_by_the_tick(dataset, table):
    aged = AgedFeatures(dataset, table, (0.0, 2.0), seed=1)
    by_size = []
    for size in (5, 16):
        batches = list(sequential_batches(dataset, table, "all", size, aged=aged))
        by_size.append(np.concatenate([b.observation.feature_age[b.valid] for b in batches]))
    np.testing.assert_array_equal(*by_size)


def test_pictures_paired_by_position_have_no_age(tmp_path):
    write_windows_episode(tmp_path / "s" / "Task" / "e", seed=0, has_sensor=False)
    options = PrepareOptions()
    options = PrepareOptions(episode=type(options.episode)(alignment="index"))
    indexed = prepare([str(tmp_path / "s")], tmp_path / "data", options).dataset
    fill_cache(indexed, tmp_path / "cache", provenance())
    table = FeatureTable.open(indexed, tmp_path / "cache")
    assert make_batch(indexed, table, table.sample_ticks("all")).observation.feature_age is None
