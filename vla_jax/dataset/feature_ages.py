"""Features that are older than the newest: what a policy sees while the backbone takes its time.

The records of an episode's earlier refreshes are in the feature table anyway; a sample of some age sees one of them.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from vla_jax.contracts.specs import MAX_FEATURE_AGE_S
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset

_STREAM = 1
"""Tells these draws from others of the same seed."""


class AgedFeatures:
    """Chooses the record that a sample's features come from by an age drawn for it.

    quantiles: ascending ages in seconds, at equal distances of the distribution that ages are drawn from: one is the
    age of all, between two they are uniform. seed: of the draws.
    """

    @classmethod
    def of(
        cls, dataset: PackedDataset, features: FeatureTable, quantiles: Sequence[float], seed: int
    ) -> "AgedFeatures | None":
        """Returns what chooses by these quantiles; None without any, where features are the newest."""
        return cls(dataset, features, quantiles, seed) if quantiles else None

    def __init__(
        self, dataset: PackedDataset, features: FeatureTable, quantiles: Sequence[float], seed: int = 0
    ) -> None:
        self._dataset = dataset
        self._features = features
        self._quantiles = np.array(quantiles, np.float64)
        self._seed = seed
        held = features.records
        self._times = dataset.record_time[held]
        self._first = np.searchsorted(
            dataset.array("instant_episode")[held], np.arange(len(dataset.episodes))
        )
        # So many refreshes are certainly enough for the largest age.
        meta = dataset.meta
        self._num_back = int(MAX_FEATURE_AGE_S * meta.action_hz / meta.vlm_reuse_count) + 2

    def records(
        self, ticks: Int[np.ndarray, " n"], positions: Int[np.ndarray, " n"]
    ) -> Int[np.ndarray, " n"]:
        """Returns the record (i64) of each tick: of those up to its own newest refresh that have features, the one
        whose age is closest to what is drawn; at an episode's beginning, where none is old enough, the oldest.

        ticks: samples. positions: by what the draws are told apart; equal ones have equal draws.
        """
        episode = self._dataset.ticks.episode[ticks]
        own = self._features.rows(self._dataset.record_index(ticks)).astype(np.int64)
        places = np.maximum(own[:, None] - np.arange(self._num_back), self._first[episode][:, None])
        ages = self._dataset.ticks.time[ticks][:, None] - self._times[places]
        chosen = np.argmin(np.abs(ages - self.drawn(positions)[:, None]), axis=1)
        return self._features.records[places[np.arange(len(places)), chosen]]

    def drawn(self, positions: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Returns the age drawn for each position, seconds."""
        levels = np.linspace(0.0, 1.0, len(self._quantiles))
        return np.interp(uniform_draws(self._seed, positions), levels, self._quantiles)


def uniform_draws(seed: int, positions: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns a number in [0, 1) for each position, of the seed and the position alone (SplitMix64: Steele et al.,
    Fast splittable pseudorandom number generators, 2014)."""
    start = np.random.SeedSequence([seed, _STREAM]).generate_state(1, np.uint64)
    bits = start + (np.asarray(positions).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return (bits >> np.uint64(11)) * 2.0**-53
