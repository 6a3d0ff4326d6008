"""The arm's own state as a part of the condition."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vla_jax.models.config import StateEncoderConfig
from vla_jax.models.transformer import linear


class StateEncoder(nnx.Module):
    """Two layers over the chosen values of the normalised state; the result is added to the condition."""

    def __init__(self, config: StateEncoderConfig, *, width: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        """width: of the condition."""
        self.columns = config.columns
        self.dtype = dtype
        self.hidden = linear(len(config.columns), config.hidden_dim, dtype=dtype, rngs=rngs)
        self.project = linear(config.hidden_dim, width, dtype=dtype, rngs=rngs)

    def __call__(self, state: Float[Array, "b p"]) -> Float[Array, "b e"]:
        """What the condition gains."""
        chosen = state[:, jnp.array(self.columns)].astype(self.dtype)
        return self.project(jax.nn.gelu(self.hidden(chosen)))
