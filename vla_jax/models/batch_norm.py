"""BatchNorm with torch's running statistics, over the samples that count."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

EPSILON = 1e-5
MOMENTUM = 0.1


class BatchNorm(nnx.Module):
    """Normalises channels by the statistics over batch and time (Ioffe & Szegedy 2015), or by running ones.

    Statistics are float32, computed in two passes. Under `jax.jit` with a sharded batch they are those of the
    global batch. The running variance is unbiased, as torch keeps it.
    """

    def __init__(self, channels: int, *, groups: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        """groups: number of equal parts of the batch that are normalised each by its own statistics."""
        self.groups = groups
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(channels, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(channels, jnp.float32))
        # Read by no computation; kept because torch's state has it.
        self.num_batches = nnx.BatchStat(jnp.zeros((), jnp.int32))

    def __call__(
        self, x: Float[Array, "b t c"], counts: Bool[Array, " b"] | None, *, train: bool
    ) -> Float[Array, "b t c"]:
        """Normalises x; with `train` by the statistics of the samples in `counts` (None: all), and updates the
        running ones. A batch without any such sample is normalised by the running statistics and changes nothing.
        """
        x = x.astype(jnp.float32)
        running_mean, running_var = _channels_last(self.mean[...]), _channels_last(self.var[...])
        if not train:
            return self._normalise(x[None], running_mean, running_var)[0]
        b, t, c = x.shape
        if b % self.groups:
            raise ValueError(
                f"a batch of {b} cannot be split into {self.groups} groups of BatchNorm statistics"
            )
        grouped = x.reshape(self.groups, b // self.groups, t, c)
        weights = jnp.ones((b,), jnp.float32) if counts is None else counts.astype(jnp.float32)
        weights = weights.reshape(self.groups, -1, 1, 1)
        total = weights.sum(axis=(1, 2, 3), keepdims=True) * t
        divisor = jnp.maximum(total, 1.0)
        mean = (grouped * weights).sum(axis=(1, 2), keepdims=True) / divisor
        var = (jnp.square(grouped - mean) * weights).sum(axis=(1, 2), keepdims=True) / divisor
        known = total > 0
        normalised = self._normalise(
            grouped, jnp.where(known, mean, running_mean), jnp.where(known, var, running_var)
        )
        unbiased = var[0, 0, 0] * (total[0, 0, 0] / jnp.maximum(total[0, 0, 0] - 1.0, 1.0))
        self._update(mean[0, 0, 0], unbiased, known[0, 0, 0, 0])
        return normalised.reshape(b, t, c)

    def _normalise(self, x: Array, mean: Array, var: Array) -> Array:
        scale = jax.lax.rsqrt(var + EPSILON) * _channels_last(self.scale[...])
        return ((x - mean) * scale + _channels_last(self.bias[...])).astype(self.dtype)

    def _update(self, mean: Array, var: Array, known: Array) -> None:
        rate = jnp.where(known, MOMENTUM, 0.0)
        mean, var = jax.lax.stop_gradient((mean, var))
        self.mean[...] = (1.0 - rate) * self.mean[...] + rate * mean
        self.var[...] = (1.0 - rate) * self.var[...] + rate * var
        self.num_batches[...] = self.num_batches[...] + known.astype(jnp.int32)


def _channels_last(x: Float[Array, " c"]) -> Float[Array, "1 1 1 c"]:
    return x[None, None, None, :]
