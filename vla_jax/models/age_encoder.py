"""How old the features are, as a part of the condition."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vla_jax.contracts.specs import MAX_FEATURE_AGE_S
from vla_jax.models.config import AgeEncoderConfig
from vla_jax.models.transformer import linear


class AgeEncoder(nnx.Module):
    """Two layers over the age; the result is added to the condition."""

    def __init__(self, config: AgeEncoderConfig, *, width: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        """width: of the condition."""
        self.dtype = dtype
        self.hidden = linear(1, config.hidden_dim, dtype=dtype, rngs=rngs)
        self.project = linear(config.hidden_dim, width, dtype=dtype, rngs=rngs)

    def __call__(self, age_s: Float[Array, " b"]) -> Float[Array, "b e"]:
        """What the condition gains. age_s: seconds; beyond what policies are trained for, the largest of it counts."""
        # From −1 to 1, as all that networks read is scaled.
        scaled = 2.0 * jnp.clip(age_s / MAX_FEATURE_AGE_S, 0.0, 1.0) - 1.0
        return self.project(jax.nn.gelu(self.hidden(scaled[:, None].astype(self.dtype))))
