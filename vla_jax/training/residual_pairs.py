"""What a residual learns from: what a chunk of some ticks ago had for a tick, and what should have been done there."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from vla_jax.dataset.packed_dataset import PackedDataset


@dataclass(frozen=True)
class ResidualPairs:
    """Every tick with a sensor beside every chunk that is young enough. All actions are in recorded units.

    Attributes:
        tick: [n] rows of the data set's tick table.
        chunk_age: [n] ticks since the tick at which the chunk was predicted.
        action: [n, a] what the chunk has for the tick.
        target: [n, a] the recorded action there, or its correction where the episode has some.
    """

    tick: Int[np.ndarray, " n"]
    chunk_age: Int[np.ndarray, " n"]
    action: Float[np.ndarray, "n a"]
    target: Float[np.ndarray, "n a"]

    def __len__(self) -> int:
        return len(self.tick)


def make_pairs(
    dataset: PackedDataset,
    ticks: Int[np.ndarray, " m"],
    chunks: Float[np.ndarray, "m h a"],
    chunk_age_max: int,
) -> ResidualPairs:
    """Pairs each of `ticks` that has a sensor with the chunks of 0 to `chunk_age_max` ticks before, of its own episode.

    ticks: samples, ascending. chunks: what the policy predicted at each of them, in recorded units.
    """
    place = np.full(len(dataset.ticks), -1, np.int64)
    place[ticks] = np.arange(len(ticks))
    ticks = ticks[dataset.has_sensor(ticks)]
    episode = dataset.ticks.episode
    parts = []
    for age in range(chunk_age_max + 1):
        begun = np.maximum(ticks - age, 0)
        there = (ticks >= age) & (place[begun] >= 0) & (episode[begun] == episode[ticks])
        shown = ticks[there]
        parts.append((shown, np.full(len(shown), age), chunks[place[begun[there]], age]))
    tick, chunk_age, action = (np.concatenate(part) for part in zip(*parts, strict=True))
    return ResidualPairs(tick, chunk_age, action, np.asarray(dataset.ticks.delta[tick]))
