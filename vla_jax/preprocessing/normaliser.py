"""Normalisation of actions, sensor windows, the arm's state and vision-language features, and its inverse for actions.

One `Normaliser` is made from the data set's statistics when training starts, is part of every checkpoint, and is
the only place that divides by a scale or multiplies by one.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vla_jax.contracts.observation import ArrayLike
from vla_jax.preprocessing.config import NormalisationConfig

# An action dimension whose spread is below this is constant (the gripper): it is normalised to its distance from
# the constant, and whatever a network says of it comes back as the constant.
CONSTANT_SPREAD = 1e-6
# Feature dimensions that hardly vary carry rounding noise; their scale is kept above this share of the median scale.
FEATURE_SCALE_FLOOR = 0.1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normaliser:
    """Offsets and scales, all float32: normalised = (physical − offset) / scale.

    action_offset, action_scale: [a], in the actions' own units; scale 0 marks a constant dimension.
    force_offset, force_scale, ascan_scale: scalars in the recorded units.
    feature_offset, feature_scale: [s, v], or [1, v] where slots have no fixed meaning.
    state_offset, state_scale, state_period: [p], of policies that read the arm's state, else None; the period of an
        angle is a turn, and that of other values infinite.
    motion_scale, motion_period: [p], of policies that read the arm's last states, else None; likewise.
    centre_ascan: whether the window's mean A-scan value is taken out.
    """

    action_offset: Any
    action_scale: Any
    force_offset: Any
    force_scale: Any
    ascan_scale: Any
    feature_offset: Any
    feature_scale: Any
    state_offset: Any = None
    state_scale: Any = None
    state_period: Any = None
    motion_scale: Any = None
    motion_period: Any = None
    centre_ascan: bool = dataclasses.field(metadata={"static": True}, default=True)

    def normalise_actions(self, actions: Float[ArrayLike, "*b h a"]) -> Float[Array, "*b h a"]:
        """Maps actions in their own units (mm and degrees of the lab's arm) to network units."""
        return _standardise(
            actions, self.action_offset, jnp.where(self.action_scale > 0, self.action_scale, 1.0)
        )

    def denormalise_actions(self, actions: Float[Array, "*b h a"]) -> Float[Array, "*b h a"]:
        """Maps network outputs to actions in their own units; inverse of `normalise_actions` on the data."""
        return actions * _align(self.action_scale, actions) + _align(self.action_offset, actions)

    def normalise_sensor(self, window: Float[ArrayLike, "*b t c"]) -> Float[Array, "*b t c"]:
        """Scales sensor windows; channel 0 is the force, the others are A-scan depth bins. Returns float32."""
        window = jnp.asarray(window, jnp.float32)
        force, ascan = window[..., :1], window[..., 1:]
        if self.centre_ascan:
            ascan = ascan - jnp.mean(ascan, axis=(-2, -1), keepdims=True)
        return jnp.concatenate(
            [(force - self.force_offset) / self.force_scale, ascan / self.ascan_scale], axis=-1
        )

    def normalise_state(self, state: Float[ArrayLike, "*b p"]) -> Float[Array, "*b p"]:
        """Scales the arm's state; an angle a turn away is the same. Returns float32."""
        offset, scale, period = (
            _align(part, state) for part in (self.state_offset, self.state_scale, self.state_period)
        )
        return _shorter_way(jnp.asarray(state, jnp.float32) - offset, period) / scale

    def normalise_motion(
        self, window: Float[ArrayLike, "*b w p"], mask: Bool[ArrayLike, "*b w"]
    ) -> Float[Array, "*b w p"]:
        """Scales how far the arm's last states lie from the newest; angles take the shorter way, and states that are
        missing become zero. Returns float32."""
        window = jnp.asarray(window, jnp.float32)
        distance = _shorter_way(window - window[..., -1:, :], _align(self.motion_period, window))
        return jnp.where(mask[..., None], distance / _align(self.motion_scale, window), 0.0)

    def normalise_features(
        self, features: Float[ArrayLike, "*b s v"], mask: Bool[ArrayLike, "*b s"]
    ) -> Float[Array, "*b s v"]:
        """Scales vision-language features; absent slots become zero. Returns float32."""
        scaled = _standardise(features, self.feature_offset, self.feature_scale)
        return jnp.where(mask[..., None], scaled, 0.0)


@dataclass(frozen=True)
class StateMoments:
    """Mean and deviation of the values of the arm's state, and their periods; float64 [p]."""

    offset: np.ndarray
    scale: np.ndarray
    period: np.ndarray


def state_moments(state: Float[np.ndarray, "n p"], is_angle: Bool[np.ndarray, " p"]) -> StateMoments:
    """Returns the moments of recorded states.

    is_angle: which values are angles in degrees: their mean is the circular one (Mardia & Jupp, Directional
        Statistics, 2000), and their deviation that of the distances from it.
    """
    state = np.asarray(state, np.float64)
    period = np.where(is_angle, 360.0, np.inf)
    radians = np.radians(state)
    circular = np.degrees(np.arctan2(np.sin(radians).mean(axis=0), np.cos(radians).mean(axis=0)))
    offset = np.where(is_angle, circular, state.mean(axis=0))
    distance = state - offset
    distance -= np.where(is_angle, 360.0 * np.round(distance / 360.0), 0.0)
    return StateMoments(offset, _scale_or(1.0, np.sqrt(np.mean(np.square(distance), axis=0))), period)


@dataclass(frozen=True)
class MotionMoments:
    """Root mean square of how far the arm's last states lie from the newest, and the values' periods; float64 [p]."""

    scale: np.ndarray
    period: np.ndarray


def motion_moments(
    windows: Float[np.ndarray, "n w p"], mask: Bool[np.ndarray, "n w"], is_angle: Bool[np.ndarray, " p"]
) -> MotionMoments:
    """Returns the moments of recorded windows. is_angle: which values are angles in degrees."""
    distance = np.asarray(windows, np.float64) - windows[:, -1:]
    distance -= np.where(is_angle, 360.0 * np.round(distance / 360.0), 0.0)
    # The newest is none away from itself.
    there = distance[:, :-1][mask[:, :-1] & mask[:, -1:]]
    spread = np.sqrt(np.mean(np.square(there), axis=0)) if len(there) else np.zeros(len(is_angle))
    return MotionMoments(_scale_or(1.0, spread), np.where(is_angle, 360.0, np.inf))


def make_normaliser(
    config: NormalisationConfig,
    statistics: Mapping[str, Any],
    feature_mean: np.ndarray,
    feature_std: np.ndarray,
    state: StateMoments | None = None,
    motion: MotionMoments | None = None,
) -> Normaliser:
    """Builds the normaliser from a data set's training statistics.

    Args:
        config: the scalings to use.
        statistics: `PackedDataset.statistics`; needs "actions", and, when the set has sensor data, "force" and
            "sensor_centred".
        feature_mean, feature_std: [s, v] or [1, v], of the training features (`feature_moments`).
        state: of the training ticks (`state_moments`), for policies that read the arm's state.
        motion: likewise (`motion_moments`), for policies that read its last states.
    """
    num_actions = np.shape(statistics["actions"].mean)[0]
    action_offset, action_scale = np.zeros(num_actions), np.ones(num_actions)
    actions = statistics["actions"]
    if config.actions == "mean_std":
        action_offset, action_scale = actions.mean, _scale_or(0.0, actions.std)
        # An open or closed gripper: by its deviation, the rarer of both would lie many of them away.
        two = is_two_valued(actions)
        action_offset = np.where(two, (actions.max + actions.min) / 2, action_offset)
        action_scale = np.where(two, (actions.max - actions.min) / 2, action_scale)
    elif config.actions == "min_max":
        action_offset = (actions.max + actions.min) / 2
        action_scale = _scale_or(0.0, (actions.max - actions.min) / 2)
    force_offset, force_scale, ascan_scale = 0.0, 1.0, 1.0
    if config.sensor == "centred" and "force" in statistics:
        force_offset = np.reshape(statistics["force"].mean, ())
        force_scale = np.reshape(_scale_or(1.0, statistics["force"].std), ())
        ascan_scale = _scale_or(1.0, statistics["sensor_centred"].std)[1]
    if config.features == "none":
        feature_mean, feature_std = np.zeros_like(feature_mean), np.ones_like(feature_std)
    of_arm = {
        f"{group}_{name}": jnp.asarray(value, jnp.float32)
        for group, moments in (("state", state), ("motion", motion))
        if moments is not None
        for name, value in asdict(moments).items()
    }
    return Normaliser(
        *(
            jnp.asarray(np.asarray(value), jnp.float32)
            for value in (action_offset, action_scale, force_offset, force_scale, ascan_scale)
        ),
        feature_offset=jnp.asarray(feature_mean, jnp.float32),
        feature_scale=jnp.asarray(feature_std, jnp.float32),
        **of_arm,
        centre_ascan=config.sensor == "centred",
    )


def is_two_valued(statistics: Any) -> Bool[np.ndarray, " d"]:
    """Tells which dimensions take two values only, by their `FeatureStatistics`.

    No distribution between min and max with this mean varies more than the one that takes only those two values
    (Bhatia and Davis 2000): (max − mean)(mean − min).
    """
    largest = (statistics.max - statistics.mean) * (statistics.mean - statistics.min)
    return (largest > CONSTANT_SPREAD**2) & (np.square(statistics.std) > (1 - 1e-6) * largest)


def feature_moments(
    features: Float[np.ndarray, "n s v"], mask: Bool[np.ndarray, "n s"], *, per_slot: bool
) -> tuple[Float[np.ndarray, "s v"], Float[np.ndarray, "s v"]]:
    """Returns the masked mean and a floored deviation of the features, in float64.

    per_slot: True where a slot has a fixed meaning (pooled features); False gives [1, v], shared by all tokens.
    A slot that never occurs gets mean 0 and deviation 1.
    """
    features = np.asarray(features, np.float64)
    weights = mask[..., None].astype(np.float64)
    axes = (0,) if per_slot else (0, 1)
    count = np.maximum(weights.sum(axis=axes, keepdims=True), 1.0)
    mean = (features * weights).sum(axis=axes, keepdims=True) / count
    variance = (np.square(features - mean) * weights).sum(axis=axes, keepdims=True) / count
    mean, std = mean.reshape(-1, features.shape[-1]), np.sqrt(variance).reshape(-1, features.shape[-1])
    floor = FEATURE_SCALE_FLOOR * np.median(std, axis=-1, keepdims=True)
    return mean, _scale_or(1.0, np.maximum(std, floor))


def _standardise(values: ArrayLike, offset: Array, scale: Array) -> Array:
    return (jnp.asarray(values, jnp.float32) - _align(offset, values)) / _align(scale, values)


def _shorter_way(distance: Array, period: Array) -> Array:
    return distance - jnp.round(distance / period) * jnp.where(jnp.isfinite(period), period, 0.0)


def _align(parameter: Array, values: ArrayLike) -> Array:
    """Gives a parameter of the trailing axes the rank of the values."""
    return jnp.expand_dims(parameter, tuple(range(values.ndim - parameter.ndim)))


def _scale_or(constant_scale: float, spread: np.ndarray) -> np.ndarray:
    return np.where(np.asarray(spread) > CONSTANT_SPREAD, spread, constant_scale)
