"""The minimal iterative head (Pan et al. 2025, arXiv:2512.01809): regresses the actions, then once more from its own
answer. Noise is met in training only.

As in the authors' program (github.com/simchowitzlabpublic/much-ado-about-noising, mip/losses.py and mip/samplers.py),
whose second pass reads the first one's answer as it is.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vla_jax.contracts.checks import Range
from vla_jax.heads.denoiser import UNIT_TIME, Denoiser, DenoiserConfig
from vla_jax.heads.head_config import HeadSize, Sampling, register_head
from vla_jax.heads.prefix import Prefix, draw_prefix, mean_of_the_rest
from vla_jax.models.dropout import DropoutKey


@register_head
@dataclass(frozen=True)
class MinimalIterativeConfig(DenoiserConfig):
    """How noisy the actions are that the second pass is trained on."""

    kind: ClassVar[str] = "minimal_iterative"

    second_time: Annotated[float, Range(above=0, below=1)] = 0.9
    """Time t* of the second pass: it is trained on actions with noise of deviation 1 − t*."""

    def make(
        self, horizon: int, action_dim: int, *, dtype: jnp.dtype, remat: bool, rngs: nnx.Rngs
    ) -> "MinimalIterativeHead":
        return MinimalIterativeHead(self, horizon, action_dim, dtype=dtype, remat=remat, rngs=rngs)

    @classmethod
    def preset(cls, size: HeadSize, *, reference: bool = False) -> "MinimalIterativeConfig":
        return cls(**cls.sizes(size), noise_draws=4 if size == "small" else 1)


class MinimalIterativeHead(Denoiser[MinimalIterativeConfig]):
    """Its output is the actions: of zeros at time 0, and of actions nearly right at time t*."""

    CLEAN_TIME = UNIT_TIME

    def loss(
        self,
        condition: Float[Array, "b e"],
        actions: Float[Array, "b h a"],
        *,
        keys: Key[Array, "2"],
        dropout_key: DropoutKey = None,
        previous_chunk: Float[Array, "b h a"] | None = None,
    ) -> Float[Array, " b"]:
        """The squared errors of both passes, weighted 1 / t*² and 1 / (1 − t*)² over the sum of these; mean over
        `noise_draws`."""
        b, draws, t = actions.shape[0], self.config.noise_draws, self.config.second_time
        actions, condition = (jnp.repeat(x, draws, axis=0) for x in (actions, condition))
        noise = jax.random.normal(keys[1], actions.shape, actions.dtype)
        # Both passes are one of twice as many rows.
        x = jnp.concatenate([jnp.zeros_like(actions), actions + (1.0 - t) * noise])
        times = UNIT_TIME * jnp.repeat(jnp.array([0.0, t]), b * draws)
        actions, condition = (jnp.concatenate([x, x]) for x in (actions, condition))
        prefix = draw_prefix(jax.random.fold_in(keys[0], 0), actions, self.config.prefix_max)
        prediction = self(x, self.embed_time(times), condition, prefix=prefix, key=dropout_key)
        errors = mean_of_the_rest(jnp.square(prediction - actions), prefix)
        first, second = errors.reshape(2, b, draws).mean(axis=2)
        # t² (1 − t)² times the weights above.
        return ((1.0 - t) ** 2 * first + t**2 * second) / (t**2 + (1.0 - t) ** 2)

    def sample(
        self,
        condition: Float[Array, "b e"],
        *,
        keys: Key[Array, " b"] | None = None,
        previous_chunk: Float[Array, "b h a"] | None = None,
        sampling: Sampling | None = None,
        prefix: Prefix | None = None,
    ) -> Float[Array, "b h a"]:
        """Two passes; nothing is drawn."""
        chunk = jnp.zeros((condition.shape[0], *self.chunk_shape), jnp.float32)
        for time in self.embed_time(UNIT_TIME * jnp.array([0.0, self.config.second_time])):
            chunk = self(chunk, time[None], condition, prefix=prefix)
        return chunk if prefix is None else prefix.put_into(chunk)
