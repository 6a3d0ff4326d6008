"""A trained policy as a plain function of observations, for the robot and for evaluation."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from vla_jax.errors import UserError
from vla_jax.models.config import PolicyConfig
from vla_jax.preprocessing.normaliser import Normaliser
from vla_jax.training.checkpoint import LoadedPolicy, load_policy

SAMPLERS = ("ddim", "ddpm")


class InsertionPolicy:
    """Predicts the next 8 pose deltas from vision-language features and a sensor window.

    The network is compiled once for each batch size it meets; `warm_up` does that ahead of time.

    Attributes:
        loaded: the restored checkpoint: its configuration, normaliser, step, path and what it was trained on.
        sensor_window: number of sensor rows a window must have; None when the checkpoint does not say.
        sampler, sampling_steps: how a diffusion policy denoises; None for regression.
        num_parameters: of the network.
    """

    def __init__(self, loaded: LoadedPolicy, *, sampler: str | None = None, steps: int | None = None) -> None:
        """Makes a policy of a restored checkpoint.

        sampler: "ddim" or "ddpm", steps: denoising steps; None takes the checkpoint's own (ddpm: all steps). Both
            are for diffusion policies only.

        Raises:
            UserError: the sampler or the steps do not fit the policy.
        """
        self.loaded = loaded
        self.config = loaded.config.policy
        window = loaded.identity.data.get("meta", {}).get("sensor_window_size")
        self.sensor_window: int | None = None if window is None else int(window)
        self.sampler, self.sampling_steps = _sampling(self.config, sampler, steps)
        self.num_parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(loaded.network, nnx.Param)))
        structure, self._state = nnx.split(loaded.network)
        self._compiled = jax.jit(functools.partial(_sample, structure, self.sampler, self.sampling_steps))
        self._default_key = jax.random.key(0)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        checkpoint: str = "latest",
        sampler: str | None = None,
        steps: int | None = None,
    ) -> "InsertionPolicy":
        """Restores a policy from a training output directory, or from one checkpoint in it.

        checkpoint: "latest" or "best" (by validation), when `path` is a training output directory.
        sampler, steps: see `__init__`.

        Raises:
            UserError: there is no checkpoint, it is damaged, or the sampler does not fit it.
        """
        return cls(load_policy(Path(path), checkpoint=checkpoint), sampler=sampler, steps=steps)

    def predict(
        self,
        vl: Float[Array, "b s v"] | np.ndarray,
        vl_mask: Bool[Array, "b s"] | np.ndarray,
        sensor: Float[Array, "b t c"] | np.ndarray | None,
        has_sensor: Bool[Array, " b"] | np.ndarray,
        key: jax.Array | None = None,
        *,
        z_chunk: Float[Array, "b h a"] | np.ndarray | None = None,
    ) -> Float[np.ndarray, "b h a"]:
        """Returns the next h = 8 actions of each row: dx dy dz in mm, da db dr in degrees, gripper; float32.

        Inputs are as recorded, not normalised; NumPy or JAX arrays of any floating type.

        vl, vl_mask: features in the slots of the training data, and which of them are there.
        sensor: newest window, force first, then the A-scan; rows without a sensor may hold anything, and None
            means that no row has one.
        has_sensor: which rows have a sensor.
        key: randomness of a diffusion policy: one key, from which each row draws its own noise, or one key per
            row [b]. None is `jax.random.key(0)`: the same observation gives the same actions. Regression
            ignores it. A row's noise does not depend on the batch size.
        z_chunk: for policies anchored on the previous chunk only, and required by them: actions of the past, in
            mm and degrees, that the prediction is added to.

        Raises:
            ValueError: shapes do not fit the policy (all disagreements are named), or an input that the policy
                reads is not finite: such actions must not reach a robot.
        """
        vl, vl_mask, has_sensor = _float32(vl), _boolean(vl_mask), _boolean(has_sensor)
        if sensor is None:
            rows = self.sensor_window or self.config.sensor.temporal_length
            sensor = np.zeros((*has_sensor.shape, rows, self.config.sensor.channels), np.float32)
            has_sensor = np.zeros(has_sensor.shape, bool)
        sensor = _float32(sensor)
        if z_chunk is not None:
            z_chunk = _float32(z_chunk)
        key = self._default_key if key is None else _typed_key(key)
        self._check_shapes(vl, vl_mask, sensor, has_sensor, key, z_chunk)
        actions = np.asarray(
            self._compiled(self._state, self.loaded.normaliser, vl, vl_mask, sensor, has_sensor, key, z_chunk)
        )
        if not np.isfinite(actions).all():
            raise ValueError(_blame(vl, vl_mask, sensor, has_sensor))
        return actions

    def warm_up(self, batch_size: int = 1) -> None:
        """Compiles for a batch size, so that the first call on the robot takes no longer than the next."""
        self.predict(**self.example_inputs(batch_size))

    def example_inputs(self, batch_size: int) -> dict[str, np.ndarray]:
        """Returns arguments for `predict` of the right shapes: zero features, zero sensor, everything present."""
        config = self.config
        rows = self.sensor_window or config.sensor.temporal_length
        inputs: dict[str, np.ndarray] = {
            "vl": np.zeros((batch_size, config.vl_slots, config.vl_dim), np.float32),
            "vl_mask": np.ones((batch_size, config.vl_slots), bool),
            "sensor": np.zeros((batch_size, rows, config.sensor.channels), np.float32),
            "has_sensor": np.ones(batch_size, bool),
        }
        if config.z_chunk == "previous":
            inputs["z_chunk"] = np.zeros((batch_size, config.horizon, config.action_dim), np.float32)
        return inputs

    def _check_shapes(
        self, vl: Any, vl_mask: Any, sensor: Any, has_sensor: Any, key: jax.Array, z_chunk: Any
    ) -> None:
        config = self.config
        batch = vl.shape[0] if vl.ndim else 0
        slots = config.vl_slots
        if self.loaded.normaliser.feature_offset.shape[0] == 1 and vl.ndim == 3:
            slots = min(max(vl.shape[1], 1), config.vl_slots)  # tokens: any number up to the configured one
        rows = self.sensor_window or (sensor.shape[1] if sensor.ndim == 3 else config.sensor.temporal_length)
        expected = {
            "vl": (vl, (batch, slots, config.vl_dim)),
            "vl_mask": (vl_mask, (batch, slots)),
            "sensor": (sensor, (batch, rows, config.sensor.channels)),
            "has_sensor": (has_sensor, (batch,)),
        }
        if z_chunk is not None:
            expected["z_chunk"] = (z_chunk, (batch, config.horizon, config.action_dim))
        faults = [
            f"{name} has shape {tuple(value.shape)}, expected {shape}"
            for name, (value, shape) in expected.items()
            if tuple(value.shape) != shape
        ]
        if batch < 1:
            faults.append("the batch is empty")
        if key.shape not in ((), (batch,)):
            faults.append(f"key has shape {key.shape}, expected () or ({batch},)")
        if (z_chunk is not None) != (config.z_chunk == "previous"):
            faults.append(
                "z_chunk is required: this policy adds its prediction to the previous chunk"
                if z_chunk is None
                else f"z_chunk does not belong to a policy trained with z_chunk={config.z_chunk!r}"
            )
        if faults:
            raise ValueError("predict: " + "; ".join(faults))


def _sample(
    structure: nnx.GraphDef,
    sampler: str | None,
    steps: int | None,
    state: nnx.State,
    normaliser: Normaliser,
    vl: Float[Array, "b s v"],
    vl_mask: Bool[Array, "b s"],
    sensor: Float[Array, "b t c"],
    has_sensor: Bool[Array, " b"],
    key: jax.Array,
    z_chunk: Float[Array, "b h a"] | None,
) -> Float[Array, "b h a"]:
    """Normalises, samples and denormalises; each row from a key of its own, whatever the batch size."""
    network = nnx.merge(structure, state)
    keys = key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(vl.shape[0]))

    def sample_row(row_key: jax.Array, **inputs: Array) -> Float[Array, "h a"]:
        batched = {name: value[None] for name, value in inputs.items()}
        return network.sample(**batched, key=row_key, sampler=sampler, steps=steps)[0]

    inputs = {
        "vl": normaliser.normalise_features(vl, vl_mask),
        "vl_mask": vl_mask,
        "sensor": normaliser.normalise_sensor(sensor),
        "has_sensor": has_sensor,
    }
    if z_chunk is not None:
        inputs["z_chunk"] = normaliser.normalise_actions(z_chunk)
    return normaliser.denormalise_actions(jax.vmap(sample_row)(keys, **inputs))


def _sampling(config: PolicyConfig, sampler: str | None, steps: int | None) -> tuple[str | None, int | None]:
    """Returns the sampler and the number of steps that are asked for, or the configuration's."""
    if config.model_type != "diffusion":
        if sampler is not None or steps is not None:
            raise UserError(f"a {config.model_type} policy has no sampler: leave --sampler and --steps out")
        return None, None
    sampler = sampler or config.diffusion.sampler
    if sampler not in SAMPLERS:
        raise UserError(f"unknown sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}")
    total = config.diffusion.steps
    if steps is None:
        steps = config.diffusion.ddim_steps if sampler == "ddim" else total
    if not 1 <= steps <= total:
        raise UserError(f"--steps {steps} must be between 1 and the {total} steps of the policy's schedule")
    return sampler, steps


def _float32(value: Any) -> Any:
    if isinstance(value, jax.Array):
        return value.astype(jnp.float32)
    return np.asarray(value, np.float32)


def _boolean(value: Any) -> Any:
    return value.astype(bool) if isinstance(value, jax.Array) else np.asarray(value, bool)


def _typed_key(key: jax.Array) -> jax.Array:
    """Accepts keys of `jax.random.PRNGKey` too."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _blame(vl: Any, vl_mask: Any, sensor: Any, has_sensor: Any) -> str:
    """Says which input made the actions NaN or infinite."""
    blamed = []
    if not np.isfinite(np.asarray(vl)[np.asarray(vl_mask)]).all():
        blamed.append("vl")
    if not np.isfinite(np.asarray(sensor)[np.asarray(has_sensor)]).all():
        blamed.append("sensor")
    source = f"because {' and '.join(blamed)} is not" if blamed else "although the inputs are"
    return f"predict: the predicted actions are not finite, {source}"
