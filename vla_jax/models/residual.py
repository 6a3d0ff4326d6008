"""A fast residual: corrects what an old chunk has for a tick by the newest sensor window.

A chunk is promised ahead, and was predicted on features that were old even then, while the sensor is of this moment. As
in asynchronous action chunk correction (A2C2: Sendai, Alvarez, Matsushima, Matsuo, Iwasawa, "Leave No Observation
Behind: Real-time Correction for VLA Action Chunks", 2025, arXiv:2509.23224; read in its abstract), a small network runs
at every control tick beside a policy that is not trained again. By the abstract it combines the latest observation, the
chunk's action, a feature of that action's place in the chunk and some features of the policy into a correction of the
tick's action. Here the observation is the sensor window alone, and the policy's features are left out: they are as old
as the chunk.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from vla_jax.contracts.checks import Count, Range, Whole, check
from vla_jax.models.resample import resample
from vla_jax.models.sensor_encoder import StridedConv
from vla_jax.models.transformer import linear

NUM_CONVOLUTIONS = 3


@dataclass(frozen=True)
class ResidualConfig:
    """Strided convolutions over time, then two layers over what they leave, the action and the chunk's age."""

    action_dim: Count
    chunk_age_max: Whole
    """Ticks since a chunk was predicted that the network tells apart; older ones count as this old."""
    channels: Count
    """Of a sensor row."""
    temporal_length: Annotated[int, Range(low=1, high=100_000)]
    """Sensor rows that the convolutions see; windows of another length are resampled to it."""
    hidden_dim: Annotated[int, Range(low=1, high=4096)] = 64
    """Channels of the convolutions; the layer after them is twice as wide."""

    def __post_init__(self) -> None:
        check(self)


class ResidualNetwork(nnx.Module):
    """Returns what is to be added to a tick's action, both normalised. It begins as zero.

    Layers are not normalised: by the batch's statistics a correction would depend on other rows in training, and by a
    row's own the force, one channel of many, would lose its size.
    """

    def __init__(self, config: ResidualConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype("float32")
        widths = [config.channels, *[config.hidden_dim] * NUM_CONVOLUTIONS]
        self.convolutions = nnx.List(
            StridedConv(inputs, outputs, dtype=dtype, rngs=rngs) for inputs, outputs in pairwise(widths)
        )
        steps = -(-config.temporal_length // 2**NUM_CONVOLUTIONS)
        inputs = steps * config.hidden_dim + config.action_dim + config.chunk_age_max + 1
        self.hidden = linear(inputs, 2 * config.hidden_dim, dtype=dtype, rngs=rngs)
        self.project = linear(
            2 * config.hidden_dim,
            config.action_dim,
            dtype=dtype,
            rngs=rngs,
            kernel_init=nnx.initializers.zeros_init(),
        )

    def __call__(
        self,
        sensor: Float[Array, "b t c"],
        has_sensor: Bool[Array, " b"],
        action: Float[Array, "b a"],
        chunk_age: Float[Array, " b"],
    ) -> Float[Array, "b a"]:
        """The correction of each row's action; exactly zero without a sensor.

        sensor: normalised windows, the newest row last. chunk_age: ticks since the chunk was predicted; of an action
        that several chunks give, their mean.
        """
        correction = self.decode(self.encode(sensor), action, chunk_age)
        return jnp.where(has_sensor[:, None], correction, 0.0)

    def encode(self, sensor: Float[Array, "b t c"]) -> Float[Array, "b e"]:
        """What the windows say."""
        x = resample(sensor, self.config.temporal_length, "linear")
        for convolve in self.convolutions:
            x = jax.nn.gelu(convolve(x))
        # Not the mean over time: what the newest rows say is another thing than what the oldest say.
        return x.reshape(len(x), -1)

    def decode(
        self, encoded: Float[Array, "b e"], action: Float[Array, "b a"], chunk_age: Float[Array, " b"]
    ) -> Float[Array, "b a"]:
        """The correction of each row's action, by what its window says."""
        parts = [encoded, action, self._embed(chunk_age)]
        return self.project(jax.nn.gelu(self.hidden(jnp.concatenate(parts, axis=1))))

    def _embed(self, chunk_age: Float[Array, " b"]) -> Float[Array, "b d"]:
        """One of `chunk_age_max` + 1 numbers is 1; between two ages both have their share."""
        age = jnp.clip(chunk_age, 0.0, self.config.chunk_age_max)
        places = jnp.arange(self.config.chunk_age_max + 1, dtype=jnp.float32)
        return jnp.maximum(0.0, 1.0 - jnp.abs(age[:, None] - places[None, :]))
