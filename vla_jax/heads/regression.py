"""The regression head: decodes a chunk of actions from a condition in one pass."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vla_jax.heads.action_head import ActionHead
from vla_jax.heads.head_config import HeadSize, Sampling, register_head
from vla_jax.heads.prefix import Prefix, draw_prefix, mean_of_the_rest
from vla_jax.heads.transformer_head import TransformerHeadConfig
from vla_jax.models.dropout import DropoutKey, split_key
from vla_jax.models.transformer import DecoderLayer, apply_layer, layer_norm, linear


@register_head
@dataclass(frozen=True)
class RegressionConfig(TransformerHeadConfig):
    """A decoder over learned queries, one for each action."""

    kind: ClassVar[str] = "regression"

    z_chunk: Literal["zero", "previous", "target"] = "zero"
    """What the head's output is added to in training: nothing, a chunk from the past that the caller gives, or
    (reference, for comparison only: it leaks the answer) the true actions."""

    def make(
        self, horizon: int, action_dim: int, *, dtype: jnp.dtype, remat: bool, rngs: nnx.Rngs
    ) -> "RegressionHead":
        return RegressionHead(self, horizon, action_dim, dtype=dtype, remat=remat, rngs=rngs)

    @property
    def needs_previous_chunk(self) -> bool:
        return self.z_chunk == "previous"

    @classmethod
    def preset(cls, size: HeadSize, *, reference: bool = False) -> "RegressionConfig":
        return cls(**cls.SIZES[size], z_chunk="target" if reference else "zero")

    def without_leaks(self) -> "RegressionConfig":
        return replace(self, z_chunk="zero") if self.z_chunk == "target" else self


class RegressionHead(ActionHead):
    """A post-norm transformer decoder: one learned query per action, the condition its only memory token.

    A prefix enters by the queries of its actions: each has the embedded action added (`prefix_in`, whose bias marks it
    as promised), and the others attend to it.
    """

    def __init__(
        self,
        config: RegressionConfig,
        horizon: int,
        action_dim: int,
        *,
        dtype: jnp.dtype,
        remat: bool,
        rngs: nnx.Rngs,
    ):
        width = config.hidden_dim
        self.config = config
        self.action_dim = action_dim
        self.dtype = dtype
        self.remat = remat
        self.pos_embed = nnx.Param(0.02 * rngs.params.normal((1, horizon, width), jnp.float32))
        self.layers = nnx.List(
            DecoderLayer(width, config.num_heads, config.dropout, dtype=dtype, rngs=rngs)
            for _ in range(config.num_layers)
        )
        self.head_norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.head_out = linear(width, action_dim, dtype=dtype, rngs=rngs)
        # Last, so that the others draw their weights as they do without it.
        prefix_in = linear(action_dim, width, dtype=dtype, rngs=rngs) if config.prefix_max else None
        self.prefix_in = nnx.data(prefix_in)

    def __call__(
        self, condition: Float[Array, "b e"], *, prefix: Prefix | None = None, key: DropoutKey = None
    ) -> Float[Array, "b h a"]:
        """The change (delta) of the chunk that the condition calls for, float32; of promised actions it means
        nothing."""
        memory = condition[:, None, :]
        position = self.pos_embed[...].astype(self.dtype)
        x = jnp.broadcast_to(position, (condition.shape[0], *position.shape[1:]))
        if prefix is not None:
            assert self.prefix_in is not None, "only heads trained with a prefix are given one"
            given = prefix.given[..., None]
            x = x + jnp.where(given, self.prefix_in(jnp.where(given, prefix.actions, 0.0)), 0.0)
        for layer, key_ in zip(self.layers, split_key(key, len(self.layers)), strict=True):
            x = apply_layer(layer, x, memory, key=key_, remat=self.remat)
        return self.head_out(self.head_norm(x)).astype(jnp.float32)

    def decode(
        self,
        condition: Float[Array, "b e"],
        z_chunk: Float[Array, "b h a"],
        *,
        prefix: Prefix | None = None,
        key: DropoutKey = None,
    ) -> tuple[Float[Array, "b h a"], Float[Array, "b h a"]]:
        """(actions, delta): actions = z_chunk + delta."""
        delta = self(condition, prefix=prefix, key=key)
        return z_chunk + delta, delta

    def loss(
        self,
        condition: Float[Array, "b e"],
        actions: Float[Array, "b h a"],
        *,
        keys: Key[Array, "2"],
        dropout_key: DropoutKey = None,
        previous_chunk: Float[Array, "b h a"] | None = None,
    ) -> Float[Array, " b"]:
        """The squared error of the actions."""
        anchor = actions if self.config.z_chunk == "target" else self._anchor(condition, previous_chunk)
        prefix = draw_prefix(jax.random.fold_in(keys[0], 0), actions, self.config.prefix_max)
        prediction, _ = self.decode(condition, anchor, prefix=prefix, key=dropout_key)
        return mean_of_the_rest(jnp.square(prediction - actions), prefix)

    def sample(
        self,
        condition: Float[Array, "b e"],
        *,
        keys: Key[Array, " b"] | None = None,
        previous_chunk: Float[Array, "b h a"] | None = None,
        sampling: Sampling | None = None,
        prefix: Prefix | None = None,
    ) -> Float[Array, "b h a"]:
        """The actions; the answer is never known here, so a head trained on its own target adds to zeros."""
        chunk, _ = self.decode(condition, self._anchor(condition, previous_chunk), prefix=prefix)
        return chunk if prefix is None else prefix.put_into(chunk)

    def _anchor(self, condition: Array, previous_chunk: Array | None) -> Array:
        if not self.config.needs_previous_chunk:
            return jnp.zeros((condition.shape[0], self.pos_embed.shape[1], self.action_dim), jnp.float32)
        if previous_chunk is None:
            raise ValueError('z_chunk is "previous": give the chunk as previous_chunk')
        return previous_chunk
