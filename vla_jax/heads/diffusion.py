"""The diffusion expert: estimates what is noise in a chunk of actions, given a condition."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vla_jax.diffusion.timesteps import timestep_embedding
from vla_jax.models.config import PolicyConfig
from vla_jax.models.dropout import DropoutKey, split_key
from vla_jax.models.transformer import EncoderLayer, apply_layer, layer_norm, linear


class DiffusionActionExpert(nnx.Module):
    """A pre-norm transformer over the horizon's noisy actions."""

    def __init__(self, config: PolicyConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        expert = config.expert
        width = expert.hidden_dim
        self.time_embedding_dim = expert.time_embedding_dim
        self.dtype = dtype
        self.remat = config.remat
        self.time_in = linear(expert.time_embedding_dim, width, dtype=dtype, rngs=rngs)
        self.time_out = linear(width, width, dtype=dtype, rngs=rngs)
        self.action_embed = linear(config.action_dim, width, dtype=dtype, rngs=rngs)
        horizon = None
        if expert.horizon_embedding:
            horizon = nnx.Param(0.02 * rngs.params.normal((config.horizon, width), jnp.float32))
        self.horizon_embedding = nnx.data(horizon)
        self.layers = nnx.List(
            EncoderLayer(width, expert.num_heads, expert.dropout, dtype=dtype, rngs=rngs)
            for _ in range(expert.num_layers)
        )
        self.head_norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.head_in = linear(width, width, dtype=dtype, rngs=rngs)
        self.head_out = linear(width, config.action_dim, dtype=dtype, rngs=rngs)

    def embed_time(self, t: Int[Array, " n"]) -> Float[Array, "n e"]:
        """Embeds diffusion steps. It reads no actions, so a sampler does it once for all its steps."""
        embedded = timestep_embedding(t, self.time_embedding_dim).astype(self.dtype)
        return self.time_out(jax.nn.silu(self.time_in(embedded)))

    def __call__(
        self,
        x_t: Float[Array, "b h a"],
        time: Float[Array, "#b e"],
        condition: Float[Array, "b e"],
        *,
        key: DropoutKey = None,
    ) -> Float[Array, "b h a"]:
        """The network's output (noise, clean actions or v, as trained), float32.

        time: `embed_time` of each sample's step. condition: from `Fusion`.
        """
        x = self.action_embed(x_t) + (time + condition)[:, None, :]
        if self.horizon_embedding is not None:
            x = x + self.horizon_embedding[...].astype(self.dtype)[None]
        for layer, key_ in zip(self.layers, split_key(key, len(self.layers)), strict=True):
            x = apply_layer(layer, x, key=key_, remat=self.remat)
        x = self.head_out(jax.nn.silu(self.head_in(self.head_norm(x))))
        return x.astype(jnp.float32)
