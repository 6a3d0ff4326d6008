"""What a residual learns from: what chunks of some ticks ago had for a tick, and what should have been done there."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from vla_jax.dataset.packed_dataset import PackedDataset


@dataclass(frozen=True)
class ResidualSamples:
    """Ticks with a sensor, each with every chunk that is young enough. All actions are in recorded units.

    Attributes:
        tick: [n] rows of the data set's tick table.
        action: [n, d, a] what the chunk of 0, 1, …, d − 1 ticks before has for the tick.
        is_there: [n, d] whether there is such a chunk; that of the tick itself always is.
        target: [n, a] the recorded action there, or its correction where the episode has some.
    """

    tick: Int[np.ndarray, " n"]
    action: Float[np.ndarray, "n d a"]
    is_there: Bool[np.ndarray, "n d"]
    target: Float[np.ndarray, "n a"]

    def __len__(self) -> int:
        return len(self.tick)


def make_samples(
    dataset: PackedDataset,
    ticks: Int[np.ndarray, " m"],
    chunks: Float[np.ndarray, "m h a"],
    chunk_age_max: int,
) -> ResidualSamples:
    """Puts each of `ticks` with a sensor beside the chunks of 0 to `chunk_age_max` ticks before, of its own episode.

    ticks: samples, ascending. chunks: what the policy predicted at each of them, in recorded units.
    """
    place = np.full(len(dataset.ticks), -1, np.int64)
    place[ticks] = np.arange(len(ticks))
    ticks = ticks[dataset.has_sensor(ticks)]
    ages = np.arange(chunk_age_max + 1)
    begun = np.maximum(ticks[:, None] - ages, 0)
    episode = dataset.ticks.episode
    is_there = (ticks[:, None] >= ages) & (place[begun] >= 0) & (episode[begun] == episode[ticks][:, None])
    action = np.where(is_there[..., None], chunks[place[begun], ages], 0.0)
    return ResidualSamples(ticks, action.astype(np.float32), is_there, np.asarray(dataset.ticks.delta[ticks]))
