"""Transformer layers with the arithmetic of `torch.nn`: ReLU feed-forward, LayerNorm eps 1e-5, no position."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import initializers
from jaxtyping import Array, Bool, Float

from vla_jax.models.dropout import DropoutKey, dropout, split_key

NORM_EPSILON = 1e-5

# Variance 1 / (3 fan_in), torch's default for Linear and Conv1d, so that runs from scratch start alike.
linear_init = initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def linear(
    inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs, kernel_init=linear_init
) -> nnx.Linear:
    """A Linear layer with float32 parameters that computes in `dtype`."""
    return nnx.Linear(
        inputs, outputs, dtype=dtype, param_dtype=jnp.float32, kernel_init=kernel_init, rngs=rngs
    )


def layer_norm(width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A LayerNorm whose statistics are float32 and two-pass, as torch computes them."""
    return nnx.LayerNorm(
        width, epsilon=NORM_EPSILON, use_fast_variance=False, dtype=dtype, param_dtype=jnp.float32, rngs=rngs
    )


def masked_softmax(
    # `#axes`, but that a symbolic batch size cannot be compared with.
    scores: Float[Array, "*axes k"],
    mask: Bool[Array, "*broadcast #k"] | None,
) -> Float[Array, "*axes k"]:
    """Softmax over the last axis in float32, over the entries where `mask` holds; all zero where it holds nowhere."""
    scores = scores.astype(jnp.float32)
    if mask is None:
        return jax.nn.softmax(scores, axis=-1)
    # A finite floor, so that a row without any entry is uniform (then zeroed) and not NaN, in gradients too.
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.where(mask, weights, 0.0)


class MultiHeadAttention(nnx.Module):
    """Scaled dot-product attention with one joint projection for queries, keys and values (Vaswani et al. 2017)."""

    def __init__(self, width: int, num_heads: int, dropout: float, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.width = width
        self.num_heads = num_heads
        self.dropout = dropout
        # torch draws the joint projection by Xavier's rule over its (3e, e) matrix.
        xavier = initializers.xavier_uniform()
        self.in_proj = linear(width, 3 * width, dtype=dtype, rngs=rngs, kernel_init=xavier)
        self.out_proj = linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t e"], *, key: DropoutKey = None) -> Float[Array, "b t e"]:
        """Attends among the tokens of x."""
        query, key_, value = jnp.split(self.in_proj(x), 3, axis=-1)
        return self.out_proj(self._attend(query, key_, value, None, key))

    def cross(
        self,
        query: Float[Array, "b t e"],
        memory: Float[Array, "b s e"],
        mask: Bool[Array, "b s"] | None = None,
        *,
        key: DropoutKey = None,
    ) -> Float[Array, "b #t e"]:  # noqa: F821 (a shape)
        """Attends from `query` to the `memory` tokens where `mask` holds.

        A single unmasked memory token has weight one whatever the query: neither queries nor keys are computed,
        and without dropout the result is the same for all queries and has length 1.
        """
        value = self._project(memory, 2, 3)
        if memory.shape[1] == 1 and mask is None:
            if key is None or self.dropout == 0.0:
                return self.out_proj(value)
            weights = jnp.ones((query.shape[0], self.num_heads, query.shape[1], 1), value.dtype)
            return self.out_proj(self._combine(dropout(weights, self.dropout, key), value))
        attended = self._attend(self._project(query, 0, 1), self._project(memory, 1, 2), value, mask, key)
        return self.out_proj(attended)

    def _project(self, x: Array, start: int, stop: int) -> Array:
        columns = slice(start * self.width, stop * self.width)
        dtype = self.in_proj.dtype
        projected = x.astype(dtype) @ self.in_proj.kernel[:, columns].astype(dtype)
        bias = self.in_proj.bias
        return projected if bias is None else projected + bias[columns].astype(dtype)[None, None]

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.num_heads, self.width // self.num_heads)

    def _attend(self, query: Array, key_: Array, value: Array, mask: Array | None, key: DropoutKey) -> Array:
        scale = (self.width // self.num_heads) ** -0.5
        scores = jnp.einsum(
            "bqnd,bknd->bnqk", self._heads(query), self._heads(key_), preferred_element_type=jnp.float32
        )
        weights = masked_softmax(scores * scale, None if mask is None else mask[:, None, None, :])
        return self._combine(dropout(weights, self.dropout, key).astype(value.dtype), value)

    def _combine(self, weights: Array, value: Array) -> Array:
        attended = jnp.einsum("bnqk,bknd->bqnd", weights, self._heads(value))
        return attended.reshape(*attended.shape[:2], self.width)


class FeedForward(nnx.Module):
    """Linear, ReLU, dropout, Linear; four times as wide inside."""

    def __init__(self, width: int, dropout: float, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dropout = dropout
        self.linear1 = linear(width, 4 * width, dtype=dtype, rngs=rngs)
        self.linear2 = linear(4 * width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t e"], *, key: DropoutKey = None) -> Float[Array, "b t e"]:
        return self.linear2(dropout(jax.nn.relu(self.linear1(x)), self.dropout, key))


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each normalised before and added (pre-norm; Xiong et al. 2020)."""

    def __init__(self, width: int, num_heads: int, dropout: float, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dropout = dropout
        self.norm1 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.self_attn = MultiHeadAttention(width, num_heads, dropout, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.feed_forward = FeedForward(width, dropout, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t e"], *, key: DropoutKey = None) -> Float[Array, "b t e"]:
        keys = split_key(key, 4)
        x = x + dropout(self.self_attn(self.norm1(x), key=keys[0]), self.dropout, keys[1])
        return x + dropout(self.feed_forward(self.norm2(x), key=keys[2]), self.dropout, keys[3])


class DecoderLayer(nnx.Module):
    """Self-attention, attention to a memory, feed-forward; each added, then normalised (post-norm)."""

    def __init__(self, width: int, num_heads: int, dropout: float, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dropout = dropout
        self.self_attn = MultiHeadAttention(width, num_heads, dropout, dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.cross_attn = MultiHeadAttention(width, num_heads, dropout, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(width, dtype=dtype, rngs=rngs)
        self.feed_forward = FeedForward(width, dropout, dtype=dtype, rngs=rngs)
        self.norm3 = layer_norm(width, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t e"], memory: Float[Array, "b s e"], *, key: DropoutKey = None
    ) -> Float[Array, "b t e"]:
        keys = split_key(key, 6)
        x = self.norm1(x + dropout(self.self_attn(x, key=keys[0]), self.dropout, keys[1]))
        attended = self.cross_attn.cross(x, memory, key=keys[2])
        attended = jnp.broadcast_to(attended, x.shape)
        x = self.norm2(x + dropout(attended, self.dropout, keys[3]))
        return self.norm3(x + dropout(self.feed_forward(x, key=keys[4]), self.dropout, keys[5]))


def apply_layer(layer: nnx.Module, *inputs: Array, key: DropoutKey, remat: bool) -> Array:
    """Calls a layer; with `remat` its activations are recomputed in the backward pass."""
    if not remat:
        return layer(*inputs, key=key)
    return nnx.remat(lambda layer, inputs, key: layer(*inputs, key=key))(layer, inputs, key)
