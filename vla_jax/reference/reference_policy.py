"""A policy with a PyTorch reference's weights, called as the reference is called."""

from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vla_jax.errors import UserError
from vla_jax.heads.diffusion import Sampler
from vla_jax.models.config import Interpolation
from vla_jax.policy.config import PolicyConfig
from vla_jax.policy.network import PolicyNetwork
from vla_jax.reference.inferred_config import infer_config
from vla_jax.reference.options import ReferenceOptions
from vla_jax.reference.tensor_names import ENCODER, EXPERT
from vla_jax.reference.torch_files import ReferenceCheckpoint, read_checkpoint
from vla_jax.reference.weights import network_from_weights

ArrayLike = np.ndarray | jax.Array


def load_reference(
    path: str | PathLike[str],
    *,
    nhead: int = 8,
    sensor_nhead: int = 8,
    sensor_temporal_length: int = 65,
    diffusion_timesteps: int = 100,
    horizon: int = 8,
    vl_dim: int | None = None,
    interpolation_mode: Interpolation = "linear",
) -> "ReferencePolicy":
    """Reads a checkpoint of the PyTorch reference (`.pt`, any of its layouts) into a policy.

    Widths, layers, fusion and model type are inferred from the tensors; the options (`ReferenceOptions`) say what
    tensors cannot tell, with the reference's defaults.

    Raises:
        UserError: the file cannot be read, or its tensors do not make a policy; every tensor that is missing, left
            over or misshapen is listed.
    """
    settings = ReferenceOptions(
        nhead=nhead,
        sensor_nhead=sensor_nhead,
        sensor_temporal_length=sensor_temporal_length,
        diffusion_timesteps=diffusion_timesteps,
        horizon=horizon,
        vl_dim=vl_dim,
        interpolation_mode=interpolation_mode,
    )
    checkpoint = read_checkpoint(Path(path))
    shapes = {name: array.shape for name, array in checkpoint.arrays.items()}
    config = infer_config(shapes, settings, source=str(path))
    arrays, parts = checkpoint.arrays, {ENCODER, EXPERT}
    encoder = {name for name in arrays if name.startswith(f"{ENCODER}.")}
    ignored = checkpoint.ignored
    if not config.uses_sensor:
        # The fusion reads no sensor, so an encoder that was saved beside it has no place.
        arrays = {name: array for name, array in arrays.items() if name not in encoder}
        ignored += len(encoder)
    elif not encoder:
        parts = {EXPERT}
    network = network_from_weights(config, arrays, parts=parts, source=str(path))
    return ReferencePolicy(
        network,
        has_encoder=config.uses_sensor and bool(encoder),
        checkpoint=ReferenceCheckpoint({}, checkpoint.layout, ignored, checkpoint.epoch),
        options=settings,
    )


class ReferencePolicy:
    """Evaluation-mode calls in float32, batch first, numpy or JAX arrays in; compiled once per shape.

    network: the policy network, for everything else. checkpoint: layout, epoch and number of ignored tensors of the
    file (its arrays are dropped). options: what the caller said of it.
    """

    def __init__(
        self,
        network: PolicyNetwork,
        *,
        has_encoder: bool = True,
        checkpoint: ReferenceCheckpoint | None = None,
        options: ReferenceOptions | None = None,
    ):
        self.network = network
        self.has_encoder = has_encoder
        self.checkpoint = checkpoint
        self.options = options
        self._graphdef, self._state = nnx.split(network)

    @property
    def config(self) -> PolicyConfig:
        """The network's configuration."""
        return self.network.config

    def encode_sensor(self, sensor: ArrayLike) -> jax.Array:
        """The sensor feature (B, D) of windows (B, T, C)."""
        if not self.has_encoder:
            raise UserError("this checkpoint holds no sensor encoder; give sensor features directly")
        return _encode(self._graphdef, self._state, _as_float32(sensor))

    def predict_noise(
        self,
        x_t: ArrayLike,
        t: ArrayLike,
        vl: ArrayLike,
        sensor_features: ArrayLike | None = None,
        vl_mask: ArrayLike | None = None,
    ) -> jax.Array:
        """The noise (B, H, A) that the network sees in x_t (B, H, A) at steps t (B,), given tokens vl (B, S, V)."""
        t = np.broadcast_to(np.asarray(t, np.int32), (len(x_t),))
        return self._call("predict_noise", (vl, sensor_features, vl_mask), x_t=x_t, t=t)

    def sample(
        self,
        x_T: ArrayLike,
        vl: ArrayLike,
        sensor_features: ArrayLike | None = None,
        vl_mask: ArrayLike | None = None,
        sampler: Sampler | None = None,
        steps: int | None = None,
        noise: ArrayLike | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Actions (B, H, A) from the starting noise x_T.

        sampler: "ddim" (default) or "ddpm". steps: default 10 and all. noise: what DDPM adds, (steps - 1, B, H, A),
        first the one for the noisiest step; None draws it from `key` (default: key 0).
        """
        self._require("denoise")
        sampling = self.config.head.sampling(sampler, steps)
        assert sampling is not None, "a head that denoises samples"
        if noise is None and sampling.sampler == "ddpm":
            step_keys = jax.random.split(jax.random.key(0) if key is None else key, sampling.steps - 1)
            noise = jax.vmap(lambda step_key: jax.random.normal(step_key, np.shape(x_T), jnp.float32))(
                step_keys
            )
        observed = (vl, sensor_features, vl_mask)
        return self._call("denoise", observed, (("sampling", sampling),), x_T=x_T, noise=noise)

    def decode(
        self,
        vl: ArrayLike,
        z_chunk: ArrayLike,
        sensor_features: ArrayLike | None = None,
        vl_mask: ArrayLike | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """(actions, delta), each (B, H, A), with actions = z_chunk + delta."""
        return self._call("decode", (vl, sensor_features, vl_mask), z_chunk=z_chunk)

    def _call(
        self,
        method: str,
        observed: tuple[ArrayLike | None, ...],
        options: tuple = (),
        **inputs: ArrayLike | None,
    ) -> Any:
        self._require(method)
        observed, inputs = jax.tree.map(_as_float32, (observed, inputs))
        return _apply(self._graphdef, method, options, self._state, observed, inputs)

    def _require(self, method: str) -> None:
        if not hasattr(self.network.expert, method):
            raise ValueError(f"{method}: a {self.config.head.kind} policy has no such thing")


@partial(jax.jit, static_argnums=0)
def _encode(graphdef: nnx.GraphDef, state: Any, sensor: jax.Array) -> jax.Array:
    # Full float32 products on every device: accelerators round inputs otherwise.
    with jax.default_matmul_precision("highest"):
        return nnx.merge(graphdef, state).encode_sensor(sensor)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _apply(
    graphdef: nnx.GraphDef, method: str, options: tuple, state: Any, observed: tuple, inputs: dict
) -> Any:
    """Calls a method of the head on the condition that `observed` (vl, sensor features, mask) makes."""
    with jax.default_matmul_precision("highest"):
        network = nnx.merge(graphdef, state)
        condition = network.condition(*observed)
        return getattr(network.expert, method)(condition=condition, **dict(options), **inputs)


def _as_float32(array: ArrayLike) -> jax.Array:
    array = jnp.asarray(array)
    return array.astype(jnp.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array
