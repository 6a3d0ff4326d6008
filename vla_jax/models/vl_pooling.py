"""How the vision-language tokens of a sample become one vector."""

import jax.numpy as jnp
from flax import nnx
from flax.nnx import initializers
from jaxtyping import Array, Bool, Float

from vla_jax.models.transformer import linear, masked_softmax


def mean_pool(tokens: Float[Array, "b s v"], mask: Bool[Array, "b s"] | None) -> Float[Array, "b v"]:
    """The mean of the tokens where `mask` holds (None: of all), zero where it holds for none."""
    tokens32 = tokens.astype(jnp.float32)
    if mask is None:
        return tokens32.mean(axis=1).astype(tokens.dtype)
    weights = mask.astype(jnp.float32)[..., None]
    total = (tokens32 * weights).sum(axis=1)
    return (total / jnp.maximum(weights.sum(axis=1), 1.0)).astype(tokens.dtype)


class SlotEmbedding(nnx.Module):
    """Tells tokens of different slots apart: a learned scale and shift for each (Perez et al. 2018, FiLM).

    The shift alone would let attention choose slots, but mix them by one matrix; the scale lets each slot be read
    by its own combination of the features.
    """

    def __init__(self, slots: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        # Scales of either sign make the pooled vector a random projection of all slots together from the start.
        self.scale = nnx.Param(rngs.params.normal((slots, width), jnp.float32))
        self.shift = nnx.Param(0.02 * rngs.params.normal((slots, width), jnp.float32))

    def __call__(self, tokens: Float[Array, "b s w"]) -> Float[Array, "b s w"]:
        """Scales and shifts the token of slot i by row i.

        Raises:
            ValueError: there are more tokens than slots.
        """
        count, slots = tokens.shape[1], self.scale.shape[0]
        if count > slots:
            raise ValueError(f"{count} vision-language tokens, but slots were learned for {slots} (vl_slots)")
        scale, shift = (
            self.scale[None, :count].astype(self.dtype),
            self.shift[None, :count].astype(self.dtype),
        )
        return tokens * scale + shift


class AttentionPool(nnx.Module):
    """A learned query attends over the present tokens, each projected and marked with its slot."""

    def __init__(
        self, tokens_dim: int, slots: int, width: int, num_heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.num_heads = num_heads
        self.project = linear(
            tokens_dim, width, dtype=dtype, rngs=rngs, kernel_init=initializers.lecun_normal()
        )
        self.slot_embedding = SlotEmbedding(slots, width, dtype=dtype, rngs=rngs)
        self.query = nnx.Param(jnp.zeros((num_heads, width // num_heads), jnp.float32))

    def __call__(self, tokens: Float[Array, "b s v"], mask: Bool[Array, "b s"] | None) -> Float[Array, "b w"]:
        """Pools the tokens where `mask` holds; zero where it holds for none."""
        marked = self.slot_embedding(self.project(tokens))
        b, s, w = marked.shape
        heads = marked.reshape(b, s, self.num_heads, w // self.num_heads)
        query = self.query[...].astype(heads.dtype)
        scores = jnp.einsum("bsnd,nd->bns", heads, query, preferred_element_type=jnp.float32)
        weights = masked_softmax(
            scores * (w // self.num_heads) ** -0.5, None if mask is None else mask[:, None, :]
        )
        return jnp.einsum("bns,bsnd->bnd", weights.astype(heads.dtype), heads).reshape(b, w)
