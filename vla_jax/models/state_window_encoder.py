"""How the arm has moved lately, as a part of the condition."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from vla_jax.models.config import StateWindowConfig
from vla_jax.models.transformer import linear


class StateWindowEncoder(nnx.Module):
    """Two layers over the chosen values of all states but the newest, relative to it; the result is added to the
    condition. States that are missing are zero and told so."""

    def __init__(self, config: StateWindowConfig, *, width: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        """width: of the condition."""
        self.columns = config.columns
        self.dtype = dtype
        # The newest is zero, relative to itself.
        inputs = (config.window.rows - 1) * (len(config.columns) + 1)
        self.hidden = linear(inputs, config.hidden_dim, dtype=dtype, rngs=rngs)
        self.project = linear(config.hidden_dim, width, dtype=dtype, rngs=rngs)

    def __call__(self, window: Float[Array, "b w p"], mask: Bool[Array, "b w"]) -> Float[Array, "b e"]:
        """What the condition gains. window: normalised, relative to its newest row."""
        chosen = jnp.where(mask[:, :-1, None], window[:, :-1, jnp.array(self.columns)], 0.0)
        told = jnp.concatenate([chosen, mask[:, :-1, None].astype(chosen.dtype)], axis=2)
        flat = told.reshape(told.shape[0], -1).astype(self.dtype)
        return self.project(jax.nn.gelu(self.hidden(flat)))
