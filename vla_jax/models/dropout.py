"""Dropout as a function of an explicit key; no key means evaluation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

DropoutKey = Key[Array, ""] | None


def split_key(key: DropoutKey, count: int) -> list[DropoutKey]:
    """Splits a key into `count` keys, and no key into as many times no key."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def dropout(x: Float[Array, "*shape"], rate: float, key: DropoutKey) -> Float[Array, "*shape"]:
    """Zeroes entries with probability `rate` and scales the rest by 1 / (1 - rate); identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)
