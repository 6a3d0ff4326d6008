"""Dropout as a function of an explicit key; no key means evaluation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

DropoutKey = Key[Array, ""] | None

_LEVELS = 2**16


def split_key(key: DropoutKey, count: int) -> list[DropoutKey]:
    """Splits a key into `count` keys, and no key into as many times no key."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def dropout(x: Float[Array, "*shape"], rate: float, key: DropoutKey) -> Float[Array, "*shape"]:
    """Zeroes entries with probability `rate`, to the nearest 1/65536, and scales the rest so that the mean stays.

    Identity without a key.
    """
    dropped = round(rate * _LEVELS)
    if key is None or dropped == 0:
        return x
    kept = (_LEVELS - dropped) / _LEVELS
    return jnp.where(_sixteen_bits(key, x.shape) >= dropped, x / kept, 0.0).astype(x.dtype)


def _sixteen_bits(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Draws uniform uint16, two from each random word: on a CPU random words are a fifth of an update's time."""
    words = jax.random.bits(key, (*shape[:-1], (shape[-1] + 1) // 2), jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*shape[:-1], -1)[..., : shape[-1]]
