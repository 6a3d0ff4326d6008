"""Resampling of sensor windows along time, as `torch.nn.functional.interpolate` does it."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vla_jax.models.config import Interpolation


@lru_cache(maxsize=32)
def resampling_matrix(length: int, target: int, mode: Interpolation) -> np.ndarray:
    """The [target, length] float32 matrix that resamples a signal.

    linear: half-pixel centres, edges repeated, no smoothing. nearest: floor of the scaled index. nearest-exact: at
    half-pixel centres. area: mean over the samples that an output sample covers.
    """
    scale = length / target
    output = np.arange(target)
    matrix = np.zeros((target, length), np.float64)
    if mode == "linear":
        # float32 positions, because torch computes them so and the weights follow from them.
        position = np.maximum(
            (output.astype(np.float32) + np.float32(0.5)) * np.float32(scale) - np.float32(0.5), 0
        )
        low = np.minimum(position.astype(np.int64), length - 1)
        high = np.minimum(low + 1, length - 1)
        weight = np.clip(position - low, 0.0, 1.0)
        np.add.at(matrix, (output, low), 1.0 - weight)
        np.add.at(matrix, (output, high), weight)
    elif mode == "area":
        for index in output:
            start, stop = index * length // target, -(-(index + 1) * length // target)
            matrix[index, start:stop] = 1.0 / (stop - start)
    else:
        centre = 0.5 if mode == "nearest-exact" else 0.0
        source = np.minimum(np.floor((output + centre) * scale).astype(np.int64), length - 1)
        matrix[output, source] = 1.0
    return matrix.astype(np.float32)


def resample(x: Float[Array, "b t c"], target: int, mode: Interpolation) -> Float[Array, "b u c"]:
    """Resamples windows to `target` steps; the identity when they have that length already."""
    if x.shape[1] == target:
        return x
    matrix = jnp.asarray(resampling_matrix(x.shape[1], target, mode), x.dtype)
    return jnp.einsum("ut,btc->buc", matrix, x, precision=jax.lax.Precision.HIGHEST)
