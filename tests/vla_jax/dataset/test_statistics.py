import json

import numpy as np
import pytest

from vla_jax.dataset import statistics
from vla_jax.dataset.statistics import SensorAccumulator, merge_moments, sensor_statistics


def moments_of(rows, pieces=1):
    accumulator = SensorAccumulator()
    for piece in np.array_split(rows, pieces):
        accumulator.add(piece)
    return accumulator.result()


@pytest.mark.parametrize("offset", [0.0, 20_000.0])
def test_merged_moments_equal_numpy_in_float64(offset):
    generator = np.random.default_rng(0)
    episodes = [
        generator.normal(offset + 10 * i, 5 + i, (130 + 40 * i, 1026)).astype(np.float32) for i in range(3)
    ]
    found = sensor_statistics(merge_moments(moments_of(rows, i + 1) for i, rows in enumerate(episodes)))
    joined = np.concatenate(episodes).astype(np.float64)
    for name, values in (("force", joined[:, 0]), ("ascan", joined[:, 1:])):
        entry = found[name]
        assert entry.count == values.size
        np.testing.assert_allclose(entry.mean, values.mean(), rtol=1e-8)
        np.testing.assert_allclose(entry.std, values.std(), rtol=1e-6)
        assert entry.min == values.min()
        assert entry.max == values.max()
    squares = [
        ((block - block.mean()) ** 2).sum()
        for rows in episodes
        for block in np.split(rows[:, 1:].astype(np.float64), range(65, len(rows), 65))
    ]
    np.testing.assert_allclose(
        found["sensor_centred"].std[1] ** 2, sum(squares) / joined[:, 1:].size, rtol=1e-6
    )


def test_histogram_quantiles_are_within_their_bins():
    rows = np.random.default_rng(1).normal(-3, 40, (4000, 1026)).astype(np.float16)
    found = sensor_statistics(moments_of(rows, 7))["ascan"]
    exact = np.quantile(rows[:, 1:].astype(np.float64), list(found.quantiles))
    got = np.concatenate(list(found.quantiles.values()))
    np.testing.assert_allclose(got, exact, rtol=0.02, atol=0.3)


def test_no_rows_give_no_statistics():
    assert sensor_statistics(merge_moments([SensorAccumulator().result()])) == {}


def test_json_round_trip_keeps_every_digit():
    actions = np.random.default_rng(2).normal(size=(50, 7)).astype(np.float32)
    entry = {
        "actions": statistics.action_statistics(actions),
        **sensor_statistics(moments_of(np.ones((70, 1026), np.float16))),
    }
    text = json.dumps(statistics.statistics_to_json(entry))
    back = statistics.statistics_from_json(json.loads(text))
    np.testing.assert_array_equal(back["actions"].mean, actions.astype(np.float64).mean(axis=0))
    for name in entry:
        np.testing.assert_array_equal(back[name].std, entry[name].std)
        np.testing.assert_array_equal(back[name].min, entry[name].min)
        assert back[name].quantiles.keys() == entry[name].quantiles.keys()
