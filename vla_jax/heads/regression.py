"""The regression expert: decodes a chunk of actions from a condition in one pass."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vla_jax.models.config import PolicyConfig
from vla_jax.models.dropout import DropoutKey, split_key
from vla_jax.models.transformer import DecoderLayer, apply_layer, layer_norm, linear


class RegressionActionExpert(nnx.Module):
    """A post-norm transformer decoder: one learned query per action, the condition its only memory token."""

    def __init__(self, config: PolicyConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        expert = config.expert
        width = expert.hidden_dim
        self.dtype = dtype
        self.remat = config.remat
        self.pos_embed = nnx.Param(0.02 * rngs.params.normal((1, config.horizon, width), jnp.float32))
        self.layers = nnx.List(
            DecoderLayer(width, expert.num_heads, expert.dropout, dtype=dtype, rngs=rngs)
            for _ in range(expert.num_layers)
        )
        self.head_norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.head_out = linear(width, config.action_dim, dtype=dtype, rngs=rngs)

    def __call__(self, condition: Float[Array, "b e"], *, key: DropoutKey = None) -> Float[Array, "b h a"]:
        """The change (delta) of the chunk that the condition calls for, float32."""
        memory = condition[:, None, :]
        position = self.pos_embed[...].astype(self.dtype)
        x = jnp.broadcast_to(position, (condition.shape[0], *position.shape[1:]))
        for layer, key_ in zip(self.layers, split_key(key, len(self.layers)), strict=True):
            x = apply_layer(layer, x, memory, key=key_, remat=self.remat)
        return self.head_out(self.head_norm(x)).astype(jnp.float32)
