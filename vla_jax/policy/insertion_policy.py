"""A trained policy as a plain function of observations, for the robot and for evaluation."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vla_jax.contracts.observation import Observation
from vla_jax.contracts.specs import DataSpec, FeatureSpec, StateWindow
from vla_jax.errors import UserError
from vla_jax.policy.artifact import PolicyArtifact, load_policy
from vla_jax.policy.prediction import predict_batch, row_keys
from vla_jax.preprocessing.preprocessor import Preprocessor

Weights = dict[str, Any]


class InsertionPolicy:
    """Predicts the next actions (of the lab's arm: 8 pose deltas) from vision-language features and a sensor window.

    The network is compiled once for each batch size it meets; `warm_up` does that ahead of time.

    Attributes:
        loaded: the restored checkpoint: its network, normaliser, metadata and path.
        config: of the network.
        data, features: what the observations and actions mean, and the features that they hold.
        sensor_window: number of sensor rows a window must have; None when any will do, or there is no sensor.
        sampler, sampling_steps: how a policy that denoises does so; None for others.
        prefix_max: largest number of promised actions that it can be given; 0: it takes none.
        guided: whether its denoising is drawn to the actions that are planned already.
        num_parameters: of the network.
        state_window: which of the arm's last states it reads; None if none.
        state_values: names of the values of the arm's state that it reads; () if it reads none.
        slots_may_lack: whether slots that are left out are the same to it as slots that are masked.
        weights: parameters, statistics and normaliser: all numbers that it was trained to.
    """

    def __init__(
        self,
        loaded: PolicyArtifact,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        guided: bool = False,
    ) -> None:
        """Makes a policy of a restored checkpoint.

        sampler: "ddim" or "ddpm" of a diffusion policy, "euler" of a flow, steps: denoising steps; None takes the
            checkpoint's own (ddpm: all steps). Both are for policies that denoise only.
        guided: draw the denoising to the actions that are planned already (real-time chunking); for policies that
            denoise and were trained without a prefix. They are given as `prefix`, and each step takes a backward pass.

        Raises:
            UserError: the sampler or the steps do not fit the policy, or it cannot be guided.
        """
        self.loaded = loaded
        self.config = loaded.config
        self.data: DataSpec = loaded.metadata.data
        self.features: FeatureSpec = loaded.metadata.features
        self.sensor_window: int | None = self.data.sensor.window if self.data.sensor else None
        sampling = self.config.head.sampling(sampler, steps)
        self.sampler = sampling.sampler if sampling else None
        self.sampling_steps = sampling.steps if sampling else None
        self.num_parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(loaded.network, nnx.Param)))
        columns = self.config.state.columns if self.config.state is not None else ()
        self.state_values = tuple(self.data.state[column] for column in columns)
        self.state_window: StateWindow | None = self.config.last_states
        self.guided, self.prefix_max = guided, self.config.head.longest_prefix
        if guided and self.prefix_max:
            raise UserError(
                f"{loaded.path} was trained to go on from promised actions and needs no guidance: leave guided out"
            )
        if guided and not self.config.head.can_be_guided:
            raise UserError(
                f"{loaded.path}: a {self.config.head.kind} policy cannot be guided: leave guided out"
            )
        self.slots_may_lack: bool = loaded.normaliser.feature_offset.shape[0] == 1 and (
            self.config.vl_pool == "attention" or self.config.fusion.masked_pool
        )
        self._reads_sensor = self.config.uses_sensor and self.data.sensor is not None
        self._structure, state = nnx.split(loaded.network)
        self.weights: Weights = {"network": state, "normaliser": loaded.normaliser}
        self._sampling = sampling
        self._default_key = jax.random.key(0)
        # The leaves alone: comparing what nnx keeps in a tree's nodes costs milliseconds of each call.
        self._leaves, tree = jax.tree.flatten(self.weights)
        self._compiled = jax.jit(
            lambda leaves, observation, key: self.act(jax.tree.unflatten(tree, leaves), observation, key)
        )

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        checkpoint: str = "latest",
        sampler: str | None = None,
        steps: int | None = None,
        guided: bool = False,
    ) -> "InsertionPolicy":
        """Restores a policy from a training output directory, or from one checkpoint in it.

        checkpoint: "latest" or "best" (by validation), when `path` is a training output directory.
        sampler, steps, guided: see `__init__`.

        Raises:
            UserError: there is no checkpoint, it is damaged, or the sampler or guidance does not fit it.
        """
        loaded = load_policy(Path(path), checkpoint=checkpoint)
        return cls(loaded, sampler=sampler, steps=steps, guided=guided)

    def act(self, weights: Weights, observation: Observation, key: Key[Array, "*b"]) -> Float[Array, "b h a"]:
        """`infer` as a traceable function of `weights`, of what `read` returns, and of a key: one, or one per row.

        It checks nothing.
        """
        # A row's noise depends on its key alone, whatever the batch size.
        keys = key if key.ndim else row_keys(key, jnp.arange(observation.batch_size))
        network = nnx.merge(self._structure, weights["network"])
        return predict_batch(
            network,
            Preprocessor(weights["normaliser"], self.config.sensor.num_averages),
            observation,
            keys,
            self._sampling,
        )

    def read(self, observation: Observation) -> Observation:
        """Returns what of an observation the policy reads, complete, in the types that it is compiled for."""
        return Observation(**self._as_read(_parts(observation)))

    def infer(self, observation: Observation, key: jax.Array | None = None) -> Float[np.ndarray, "b h a"]:
        """Returns the actions that follow each row of an observation, in recorded units, float32.

        observation: in recorded units, NumPy or JAX arrays of any floating type. A sensor that is None, or that a row
            does not have, is missing, and so is every sensor for a policy that was trained without; without
            `has_sensor` every row has one. What the policy does not read may be there all the same. A prefix may have
            fewer rows than the horizon; without `prefix_length` all of them are promised, and without `plan_length`
            nothing else is planned. Without a prefix nothing is.
        key: randomness of a policy that draws: one key, from which each row draws its own noise, or one key per
            row [b]. None is `jax.random.key(0)`: the same observation gives the same actions. A row's noise does not
            depend on the batch size.

        Raises:
            ValueError: shapes do not fit the policy (all disagreements are named), or an input that the policy
                reads is not finite: such actions must not reach a robot.
        """
        return self._infer(_parts(observation), key)

    def predict(
        self,
        vl: Float[Array, "b s v"] | np.ndarray,
        vl_mask: Bool[Array, "b s"] | np.ndarray,
        sensor: Float[Array, "b t c"] | np.ndarray | None,
        has_sensor: Bool[Array, " b"] | np.ndarray,
        key: jax.Array | None = None,
        *,
        state: Float[Array, "b p"] | np.ndarray | None = None,
        state_window: Float[Array, "b w p"] | np.ndarray | None = None,
        state_window_mask: Bool[Array, "b w"] | np.ndarray | None = None,
        feature_age: Float[Array, " b"] | np.ndarray | None = None,
        z_chunk: Float[Array, "b h a"] | np.ndarray | None = None,
        prefix: Float[Array, "b n a"] | np.ndarray | None = None,
        prefix_length: Int[Array, " b"] | np.ndarray | None = None,
        plan_length: Int[Array, " b"] | np.ndarray | None = None,
    ) -> Float[np.ndarray, "b h a"]:
        """Returns the next actions of each row, for the lab: dx dy dz in mm, da db dr in degrees, gripper; float32.

        `infer`, with the parts of the observation given one by one.

        vl, vl_mask: features in the slots of the training data, and which of them are there.
        sensor: newest window, force first, then the A-scan; rows without a sensor may hold anything, and None
            means that no row has one.
        has_sensor: which rows have a sensor.
        state: the arm's newest pose, as recorded; for policies that read it, and required by them.
        state_window: for policies that read the arm's last poses: these, as recorded, oldest first and the newest
            last, as far apart as `state_window` says. None: they are missing, which such policies are trained for.
        state_window_mask: which of them are there; None: all.
        feature_age: seconds from when the oldest picture behind the features was taken to the moment that actions are
            asked for; for policies that are told it, and required by them.
        z_chunk: for policies anchored on the previous chunk only, and required by them: actions of the past, in
            mm and degrees, that the prediction is added to.
        prefix: for policies trained with a prefix and for guided ones: up to a horizon of actions, in mm and degrees,
            that are planned from this tick on.
        prefix_length: how many of them are promised (they come back as they are), at most `prefix_max`; None: all.
        plan_length: for guided policies: how many of them are planned, the promised ones and others; None: no others.

        Raises:
            ValueError: as `infer`; z_chunk is given to a policy that adds to nothing, prefix to one that takes none, or
                feature_age to one that is not told it.
        """
        if feature_age is not None and self.config.age is None:
            raise ValueError(
                "predict: feature_age does not belong to a policy that is not told how old its features are"
            )
        if z_chunk is not None and not self.config.head.needs_previous_chunk:
            raise ValueError("predict: z_chunk does not belong to a policy that adds to no previous chunk")
        if prefix is not None and not (self.prefix_max or self.guided):
            raise ValueError(
                "predict: prefix does not belong to a policy that was trained without and is not guided"
            )
        parts = {"vl": vl, "vl_mask": vl_mask, "sensor": sensor, "has_sensor": has_sensor, "state": state}
        parts |= {"state_window": state_window, "state_window_mask": state_window_mask}
        parts |= {"feature_age": feature_age, "previous_chunk": z_chunk, "prefix": prefix}
        return self._infer(parts | {"prefix_length": prefix_length, "plan_length": plan_length}, key)

    def warm_up(self, batch_size: int = 1) -> None:
        """Compiles for a batch size, so that the first call on the robot takes no longer than the next."""
        self.infer(self.example(batch_size))

    def example(self, batch_size: int = 1) -> Observation:
        """Returns an observation of the right shapes: zero everywhere, everything present."""
        data = self.data
        if data.sensor is not None and data.sensor.window is None:
            data = replace(data, sensor=replace(data.sensor, window=self.config.sensor.temporal_length))
        example = Observation.example(self.features, data, batch_size)
        if self.state_window is None:
            return example
        shape = (batch_size, self.state_window.rows, len(data.state))
        return example.replace(
            state_window=np.zeros(shape, np.float32), state_window_mask=np.ones(shape[:2], bool)
        )

    def differences(self, data: DataSpec, features: FeatureSpec) -> list[str]:
        """Returns where data and features are not what the policy was trained on, one sentence each.

        A policy that reads no sensor does not care for it.
        """
        if not self.config.uses_sensor:
            data = replace(data, sensor=None)
        faults = data.differences(self.data) + features.differences(self.features)
        reads_state = self.config.state is not None or self.config.state_window is not None
        if reads_state and data.state != self.data.state:
            theirs = ", ".join(data.state) or "not recorded"
            faults.append(f"the arm's state is {theirs}, the policy's is {', '.join(self.data.state)}")
        if self.config.age is not None and data.alignment == "index":
            faults.append("pictures are paired by index and have no age, which the policy is to be told")
        return faults

    def _infer(self, parts: Mapping[str, Any], key: jax.Array | None) -> Float[np.ndarray, "b h a"]:
        """`infer`, for the fields of an observation whose shapes are not known yet to fit."""
        read = self._as_read(parts)
        key = self._default_key if key is None else _typed_key(key)
        faults = self._faults(read, key)
        if faults:
            raise ValueError("predict: " + "; ".join(faults))
        observation = Observation(**read)
        actions = np.asarray(self._compiled(self._leaves, observation, key))
        if not np.isfinite(actions).all():
            raise ValueError(_blame(observation))
        return actions

    def _as_read(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Leaves out what the policy does not read, and gives the rest the types that it was compiled for."""
        config, sensor, previous = self.config, parts["sensor"], parts["previous_chunk"]
        read = {"vl": _float32(parts["vl"]), "vl_mask": _boolean(parts["vl_mask"])}
        if self._reads_sensor:
            has_sensor, batch = parts["has_sensor"], read["vl"].shape[:1]
            if sensor is None:
                rows = self.sensor_window or config.sensor.temporal_length
                sensor = np.zeros((*batch, rows, config.sensor.channels), np.float32)
                has_sensor = np.zeros(batch, bool)
            elif has_sensor is None:
                has_sensor = np.ones(batch, bool)
            read |= {"sensor": _float32(sensor), "has_sensor": _boolean(has_sensor)}
        if config.state is not None and parts["state"] is not None:
            read["state"] = _float32(parts["state"])
        if self.state_window is not None:
            shape = (*read["vl"].shape[:1], self.state_window.rows, len(self.data.state))
            window, mask = parts["state_window"], parts["state_window_mask"]
            if window is None:
                window, mask = np.zeros(shape, np.float32), np.zeros(shape[:2], bool)
            elif mask is None:
                mask = np.ones(shape[:2], bool)
            read |= {"state_window": _float32(window), "state_window_mask": _boolean(mask)}
        if config.age is not None and parts["feature_age"] is not None:
            read["feature_age"] = _float32(parts["feature_age"])
        if config.head.needs_previous_chunk and previous is not None:
            read["previous_chunk"] = _float32(previous)
        if self.prefix_max or self.guided:
            read |= self._planned(parts, read["vl"].shape[:1])
        return read

    def _planned(self, parts: Mapping[str, Any], batch: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Returns prefix and lengths in the one shape that is compiled for; a prefix of another shape as it is."""
        horizon, prefix = self.config.horizon, parts["prefix"]
        if prefix is None:
            prefix = np.zeros((*batch, 0, self.config.action_dim))
        prefix = np.asarray(prefix, np.float32)
        rows = prefix.shape[1] if prefix.ndim == 3 else 0
        if prefix.ndim == 3 and rows < horizon:
            prefix = np.pad(prefix, ((0, 0), (0, horizon - rows), (0, 0)))
        length, planned = parts["prefix_length"], parts["plan_length"]
        if length is None or parts["prefix"] is None:
            length = np.full(batch, rows)
        length = np.asarray(length, np.int32)
        planned = length if planned is None or parts["prefix"] is None else np.asarray(planned, np.int32)
        return {"prefix": prefix, "prefix_length": length, "plan_length": planned}

    def _faults(self, read: Mapping[str, Any], key: jax.Array) -> list[str]:
        config, vl = self.config, read["vl"]
        batch = vl.shape[0] if vl.ndim else 0
        slots = config.vl_slots
        # Where a slot has no meaning of its own, there may be any number up to the configured one.
        if vl.ndim == 3 and self.loaded.normaliser.feature_offset.shape[0] == 1:
            slots = min(max(vl.shape[1], 1), config.vl_slots)
        expected = {
            "vl": (batch, slots, config.vl_dim),
            "vl_mask": (batch, slots),
            "has_sensor": (batch,),
            "state": (batch, len(self.data.state)),
            "feature_age": (batch,),
            "state_window": (batch, self.state_window.rows if self.state_window else 0, len(self.data.state)),
            "state_window_mask": (batch, self.state_window.rows if self.state_window else 0),
            "previous_chunk": (batch, config.horizon, config.action_dim),
            "prefix": (batch, config.horizon, config.action_dim),
            "prefix_length": (batch,),
            "plan_length": (batch,),
        }
        if "sensor" in read:
            given = read["sensor"].shape
            any_length = given[1] if len(given) == 3 else config.sensor.temporal_length
            expected["sensor"] = (batch, self.sensor_window or any_length, config.sensor.channels)
        faults = [
            f"{name} has shape {tuple(value.shape)}, expected {expected[name]}"
            for name, value in read.items()
            if tuple(value.shape) != expected[name]
        ]
        if "prefix" in read and not faults:
            longest = self.prefix_max or config.horizon
            length, planned = read["prefix_length"], read["plan_length"]
            if not ((length >= 0) & (length <= longest)).all():
                faults.append(f"prefix_length is {length.tolist()}, each must be from 0 to {longest}")
            if not ((planned >= length) & (planned <= config.horizon)).all():
                faults.append(
                    f"plan_length is {planned.tolist()}, each must be from prefix_length to {config.horizon}"
                )
        if batch < 1:
            faults.append("the batch is empty")
        if key.shape not in ((), (batch,)):
            faults.append(f"key has shape {key.shape}, expected () or ({batch},)")
        if config.state is not None and "state" not in read:
            faults.append(f"state is required: this policy reads the arm's {', '.join(self.state_values)}")
        if config.age is not None and "feature_age" not in read:
            faults.append("feature_age is required: this policy is told how old its features are, in seconds")
        if config.head.needs_previous_chunk and "previous_chunk" not in read:
            faults.append(
                "z_chunk is required (previous_chunk of an observation): this policy adds its prediction to the "
                "previous chunk"
            )
        return faults


def _parts(observation: Observation) -> dict[str, Any]:
    return {entry.name: getattr(observation, entry.name) for entry in fields(Observation)}


def _float32(value: Any) -> Any:
    if isinstance(value, jax.Array):
        return value.astype(jnp.float32)
    return np.asarray(value, np.float32)


def _boolean(value: Any) -> Any:
    return value.astype(bool) if isinstance(value, jax.Array) else np.asarray(value, bool)


def _typed_key(key: jax.Array) -> jax.Array:
    """Accepts keys of `jax.random.PRNGKey` too."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _blame(observation: Observation) -> str:
    """Says which input made the actions NaN or infinite."""
    blamed = []
    if not np.isfinite(np.asarray(observation.vl)[np.asarray(observation.vl_mask)]).all():
        blamed.append("vl")
    if observation.sensor is not None:
        read = np.asarray(observation.sensor)[np.asarray(observation.has_sensor)]
        if not np.isfinite(read).all():
            blamed.append("sensor")
    if observation.state is not None and not np.isfinite(np.asarray(observation.state)).all():
        blamed.append("state")
    if observation.state_window is not None:
        there = np.asarray(observation.state_window)[np.asarray(observation.state_window_mask)]
        if not np.isfinite(there).all():
            blamed.append("state_window")
    if observation.feature_age is not None and not np.isfinite(np.asarray(observation.feature_age)).all():
        blamed.append("feature_age")
    if observation.prefix is not None:
        planned = np.arange(observation.prefix.shape[1]) < np.asarray(observation.plan_length)[:, None]
        if not np.isfinite(np.asarray(observation.prefix)[planned]).all():
            blamed.append("prefix")
    source = f"because {' and '.join(blamed)} is not" if blamed else "although the inputs are"
    return f"predict: the predicted actions are not finite, {source}"
