"""Fusion: vision-language tokens and the sensor feature become the condition vector of a head."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from vla_jax.models.config import FusionConfig
from vla_jax.models.dropout import DropoutKey
from vla_jax.models.transformer import MultiHeadAttention, linear
from vla_jax.models.vl_pooling import AttentionPool, SlotEmbedding, mean_pool


class Fusion(nnx.Module):
    """One of four strategies, each ending in a Linear to the condition's width.

    concat: pooled tokens and sensor side by side. cross_attention: the sensor queries the tokens. gated: a learned
    gate per feature between the pooled tokens and the sensor. none: the pooled tokens alone.
    """

    def __init__(
        self,
        config: FusionConfig,
        *,
        vl_dim: int,
        vl_slots: int,
        sensor_dim: int,
        width: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """vl_dim, vl_slots: of the tokens. sensor_dim: of the sensor feature. width: of the condition."""
        self.strategy = config.strategy
        self.masked_pool = config.masked_pool
        self.query_residual = config.query_residual
        self.attends = config.pool(vl_slots) == "attention"
        self.dtype = dtype
        pooled_dim = config.pooled_dim(vl_dim, vl_slots)
        if self.strategy == "cross_attention":
            self.vl_proj = linear(vl_dim, width, dtype=dtype, rngs=rngs)
            self.sensor_proj = linear(sensor_dim, width, dtype=dtype, rngs=rngs)
            if self.attends:
                self.slot_embedding = SlotEmbedding(vl_slots, width, dtype=dtype, rngs=rngs)
            self.cross_attn = MultiHeadAttention(
                width, config.num_heads, config.dropout, dtype=dtype, rngs=rngs
            )
            condition_dim = width
        else:
            if self.attends:
                self.pool = AttentionPool(
                    vl_dim, vl_slots, pooled_dim, config.vl_pool_heads, dtype=dtype, rngs=rngs
                )
            condition_dim = pooled_dim
        if self.strategy == "gated":
            self.vl_proj = linear(pooled_dim, width, dtype=dtype, rngs=rngs)
            self.sensor_proj = linear(sensor_dim, width, dtype=dtype, rngs=rngs)
            self.gate = linear(2 * width, width, dtype=dtype, rngs=rngs)
            condition_dim = width
        if self.strategy == "concat":
            condition_dim += sensor_dim
        self.project = linear(condition_dim, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        vl: Float[Array, "b s v"],
        vl_mask: Bool[Array, "b s"] | None,
        sensor_features: Float[Array, "b d"] | None,
        *,
        key: DropoutKey = None,
    ) -> Float[Array, "b e"]:
        """The condition.

        vl_mask: tokens that are present (None: all). sensor_features: not read, and may be None, for `none`.
        """
        if self.strategy == "none":
            return self.project(self._pool(vl, vl_mask))
        if sensor_features is None:
            raise ValueError(f"fusion {self.strategy!r} needs sensor features")
        sensor_features = sensor_features.astype(self.dtype)
        if self.strategy == "cross_attention":
            return self.project(self._sensor_queries_tokens(vl, vl_mask, sensor_features, key))
        pooled = self._pool(vl, vl_mask)
        if self.strategy == "concat":
            return self.project(jnp.concatenate([pooled, sensor_features], axis=-1))
        pooled, sensor = self.vl_proj(pooled), self.sensor_proj(sensor_features)
        gate = jax.nn.sigmoid(self.gate(jnp.concatenate([pooled, sensor], axis=-1)))
        return self.project(gate * pooled + (1 - gate) * sensor)

    def _pool(self, vl: Array, vl_mask: Array | None) -> Array:
        if self.attends:
            return self.pool(vl, vl_mask)
        return mean_pool(vl, vl_mask if self.masked_pool else None).astype(self.dtype)

    def _sensor_queries_tokens(
        self, vl: Array, vl_mask: Array | None, sensor: Array, key: DropoutKey
    ) -> Array:
        tokens = self.vl_proj(vl)
        if self.attends:
            tokens = self.slot_embedding(tokens)
        query = self.sensor_proj(sensor)[:, None]
        mask = vl_mask if self.masked_pool else None
        found = self.cross_attn.cross(query, tokens, mask, key=key)
        return (query + found if self.query_residual else found)[:, 0]
