"""The sensor encoder: strided convolutions, transformer layers, what they made of the window, projection."""

from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from vla_jax.models.batch_norm import BatchNorm
from vla_jax.models.config import SensorEncoderConfig
from vla_jax.models.dropout import DropoutKey, dropout, split_key
from vla_jax.models.resample import resample
from vla_jax.models.transformer import EncoderLayer, apply_layer, layer_norm, linear, linear_init

KERNEL_SIZE = 3


class StridedConv(nnx.Module):
    """Conv1d of kernel 3, stride 2 and one zero of padding on both sides, over the channels-last layout.

    It is computed as one matrix product: XLA's CPU convolution is several times slower in the backward pass, and a
    GPU's matrix units are reached either way.
    """

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(linear_init(rngs.params(), (KERNEL_SIZE, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b u d"]:
        t, c = x.shape[1:]
        steps = (t + 1) // 2
        kernel = self.kernel[...].astype(self.dtype)
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 2 * steps + 1 - t), (0, 0)))
        product = _product_of_pairs if c > kernel.shape[-1] else _product_of_taps
        return product(padded, kernel) + self.bias[...].astype(self.dtype)[None, None]


def _product_of_taps(padded: Float[Array, "b p c"], kernel: Float[Array, "3 c d"]) -> Float[Array, "b u d"]:
    """Gathers each step's three taps, and multiplies them."""
    last = padded.shape[1] - 2
    taps = [padded[:, tap : tap + last : 2] for tap in range(KERNEL_SIZE)]
    return jnp.concatenate(taps, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _product_of_pairs(padded: Float[Array, "b p c"], kernel: Float[Array, "3 c d"]) -> Float[Array, "b u d"]:
    """Multiplies rows two by two, without a copy: a pair holds two taps of its step and the third of the step before.

    A third more arithmetic, half of the time where copying wide taps is what costs (1026 channels on a CPU).
    """
    b, p, c = padded.shape
    pairs = padded.reshape(b, p // 2, 2 * c)
    own = kernel[:2].reshape(2 * c, -1)
    before = jnp.pad(kernel[2], ((0, c), (0, 0)))
    both = pairs @ jnp.concatenate([own, before], axis=1)
    return both[:, :-1, : own.shape[1]] + both[:, 1:, own.shape[1] :]


class ConvBlock(nnx.Module):
    """Convolution, BatchNorm, exact GELU, dropout."""

    def __init__(
        self, inputs: int, outputs: int, config: SensorEncoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.dropout = config.dropout
        self.conv = StridedConv(inputs, outputs, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(outputs, groups=config.statistics_groups, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t c"], counts: Bool[Array, " b"] | None, *, train: bool, key: DropoutKey
    ) -> Float[Array, "b u d"]:
        x = jax.nn.gelu(self.norm(self.conv(x), counts, train=train), approximate=False)
        return dropout(x, self.dropout, key)


class SensorEncoder(nnx.Module):
    """Turns a window of sensor samples into one feature vector."""

    def __init__(self, config: SensorEncoderConfig, *, dtype: jnp.dtype, remat: bool, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.remat = remat
        widths = [config.channels, config.hidden_dim] + [config.width] * (config.num_conv_layers - 1)
        self.conv_blocks = nnx.List(
            ConvBlock(inputs, outputs, config, dtype=dtype, rngs=rngs) for inputs, outputs in pairwise(widths)
        )
        num_layers = config.num_transformer_layers if config.use_transformer else 0
        self.layers = nnx.List(
            EncoderLayer(config.width, config.num_heads, config.dropout, dtype=dtype, rngs=rngs)
            for _ in range(num_layers)
        )
        read = config.width * (config.num_steps if config.readout == "flatten" else 1)
        self.project_in = linear(read, config.output_dim, dtype=dtype, rngs=rngs)
        self.project_norm = layer_norm(config.output_dim, dtype=dtype, rngs=rngs)
        self.project_out = linear(config.output_dim, config.output_dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        sensor: Float[Array, "b t c"],
        counts: Bool[Array, " b"] | None = None,
        *,
        train: bool = False,
        key: DropoutKey = None,
    ) -> Float[Array, "b d"]:
        """Encodes windows of any length t.

        counts: samples that enter BatchNorm's statistics when training (None: all).
        train: normalise by the batch's statistics and update the running ones; `key` drops activations.
        """
        conv_key, layer_key, projection_key = split_key(key, 3)
        x = self.convolve(sensor, counts, train=train, key=conv_key)
        for layer, key_ in zip(self.layers, split_key(layer_key, len(self.layers)), strict=True):
            x = apply_layer(layer, x, key=key_, remat=self.remat)
        if self.config.readout == "flatten":
            x = x.reshape(x.shape[0], -1)
        else:
            x = x.astype(jnp.float32).mean(axis=1).astype(self.dtype)
        x = jax.nn.gelu(self.project_norm(self.project_in(x)), approximate=False)
        return self.project_out(dropout(x, self.config.dropout, projection_key))

    def convolve(
        self,
        sensor: Float[Array, "b t c"],
        counts: Bool[Array, " b"] | None = None,
        *,
        train: bool = False,
        key: DropoutKey = None,
    ) -> Float[Array, "b u w"]:
        """The convolutional part: resampled to as many rows as are seen, then halved by each block."""
        mode = "area" if self.config.num_averages else self.config.interpolation
        x = resample(sensor, self.config.num_rows, mode).astype(self.dtype)
        for block, key_ in zip(self.conv_blocks, split_key(key, len(self.conv_blocks)), strict=True):
            x = block(x, counts, train=train, key=key_)
        return x
