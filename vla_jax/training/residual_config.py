"""Configuration of a residual's training. The docstrings under the fields are what `train_residual --help` says."""

from dataclasses import dataclass
from typing import Annotated

from vla_jax.contracts.checks import Count, NotNegative, Positive, Range, Seed, Whole, check


@dataclass(frozen=True)
class ResidualTrainConfig:
    """How a residual is trained. What the policy's own training decides is taken from there: how old the features are
    that chunks are predicted on, the noise on sensor windows, the weights of samples."""

    steps: Count = 2000
    """Optimizer updates."""
    batch_size: Annotated[int, Range(low=1, high=16_384)] = 64
    """Sensor windows per update, each with what chunks of all ages have for its tick; samples a call of the policy."""
    lr: Positive = 1e-3
    """Learning rate at the beginning; it falls to zero, by a cosine."""
    weight_decay: NotNegative = 0.05
    """Of AdamW, for kernels."""
    seed: Seed = 0
    """Seeds initial weights, order of the samples, noise, and the noise of a policy that draws some."""
    chunk_age_max: Whole | None = None
    """Ticks since a chunk was predicted up to which the residual learns to correct it; up to the horizon by default."""
    hidden_dim: Annotated[int, Range(low=1, high=4096)] = 64
    """Width of the network."""

    def __post_init__(self) -> None:
        check(self)
