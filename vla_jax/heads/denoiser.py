"""The network of heads that make actions of noisy ones: a transformer that is told how noisy they are."""

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, Real

from vla_jax.contracts.checks import Count
from vla_jax.diffusion.timesteps import timestep_embedding
from vla_jax.errors import UserError
from vla_jax.heads.action_head import ActionHead
from vla_jax.heads.head_config import HeadSize
from vla_jax.heads.prefix import Prefix
from vla_jax.heads.transformer_head import TransformerHeadConfig
from vla_jax.models.dropout import DropoutKey, split_key
from vla_jax.models.transformer import EncoderLayer, apply_layer, layer_norm, linear

UNIT_TIME = 100.0
"""What heads whose time runs from 0 to 1 give `embed_time` for 1: its frequencies are for a hundred steps."""


@dataclass(frozen=True)
class DenoiserConfig(TransformerHeadConfig):
    """An encoder over noisy actions: its embeddings, and how often a training sample is made noisy."""

    horizon_embedding: bool = True
    """The head knows a token's place in the horizon (reference: False, so it is permutation-equivariant along it)."""
    time_embedding_dim: Count = 128
    """Width of the sinusoidal embedding of the time, which says how noisy the actions are."""
    noise_draws: Count = 1
    """Times and noises drawn for each training sample. More of them use one pass of the sensor encoder, most of the
    cost, for more denoising examples (reference: 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_embedding_dim % 2 or self.time_embedding_dim < 4:
            raise UserError(
                f"{type(self).__name__}.time_embedding_dim is {self.time_embedding_dim}; make it even, at least 4"
            )

    @classmethod
    def sizes(cls, size: HeadSize) -> dict[str, Any]:
        """Returns the fields that a size decides."""
        return cls.SIZES[size] | ({"time_embedding_dim": 16} if size == "tiny" else {})


ConfigT = TypeVar("ConfigT", bound=DenoiserConfig)


class Denoiser(ActionHead, Generic[ConfigT]):
    """A pre-norm transformer over the horizon's noisy actions.

    A prefix enters by its tokens: they hold the promised actions, and instead of the step's time that of clean ones,
    `CLEAN_TIME`. It needs no parameters of its own.
    """

    CLEAN_TIME: ClassVar[float]
    """Of actions without noise, as `embed_time` counts."""

    def __init__(
        self,
        config: ConfigT,
        horizon: int,
        action_dim: int,
        *,
        dtype: jnp.dtype,
        remat: bool,
        rngs: nnx.Rngs,
    ):
        width = config.hidden_dim
        self.config = config
        self.chunk_shape = (horizon, action_dim)
        self.dtype = dtype
        self.remat = remat
        self.time_in = linear(config.time_embedding_dim, width, dtype=dtype, rngs=rngs)
        self.time_out = linear(width, width, dtype=dtype, rngs=rngs)
        self.action_embed = linear(action_dim, width, dtype=dtype, rngs=rngs)
        embedding = None
        if config.horizon_embedding:
            embedding = nnx.Param(0.02 * rngs.params.normal((horizon, width), jnp.float32))
        self.horizon_embedding = nnx.data(embedding)
        self.layers = nnx.List(
            EncoderLayer(width, config.num_heads, config.dropout, dtype=dtype, rngs=rngs)
            for _ in range(config.num_layers)
        )
        self.head_norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.head_in = linear(width, width, dtype=dtype, rngs=rngs)
        self.head_out = linear(width, action_dim, dtype=dtype, rngs=rngs)

    def embed_time(self, t: Real[Array, " n"]) -> Float[Array, "n e"]:
        """Embeds times. It reads no actions, so a sampler does it once for all its steps."""
        embedded = timestep_embedding(t, self.config.time_embedding_dim).astype(self.dtype)
        return self.time_out(jax.nn.silu(self.time_in(embedded)))

    def __call__(
        self,
        x_t: Float[Array, "b h a"],
        time: Float[Array, "#b e"],
        condition: Float[Array, "b e"],
        *,
        prefix: Prefix | None = None,
        key: DropoutKey = None,
    ) -> Float[Array, "b h a"]:
        """The network's output, float32; what it is, the head says. Of promised actions it means nothing.

        time: `embed_time` of each sample's time. condition: from `Fusion`.
        """
        told = (time + condition)[:, None, :]
        if prefix is not None:
            clean = self.embed_time(jnp.full(1, self.CLEAN_TIME, jnp.float32))
            told = jnp.where(prefix.given[..., None], (clean + condition)[:, None, :], told)
            x_t = prefix.put_into(x_t)
        x = self.action_embed(x_t) + told
        if self.horizon_embedding is not None:
            x = x + self.horizon_embedding[...].astype(self.dtype)[None]
        for layer, key_ in zip(self.layers, split_key(key, len(self.layers)), strict=True):
            x = apply_layer(layer, x, key=key_, remat=self.remat)
        x = self.head_out(jax.nn.silu(self.head_in(self.head_norm(x))))
        return x.astype(jnp.float32)

    def draw_noise(self, key: Key[Array, ""]) -> Float[Array, "h a"]:
        """Standard normal noise of one chunk."""
        return jax.random.normal(key, self.chunk_shape, jnp.float32)
