"""What a policy sees, and what it is trained on: the two pytrees that pass between data, training and robot."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from vla_jax.contracts.specs import DataSpec, FeatureSpec

ArrayLike = np.ndarray | jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Observation:
    """What is known at b control ticks, never later than the tick. None: the data have nothing of the kind.

    Made by the loader, the robot's runtime or a client in recorded units, and by the preprocessor in the network's.
    Axes: b batch, s slots, v feature width, t sensor rows, c channels, h horizon, a action dimensions,
    p values of the state, w states of the window.
    """

    vl: Float[ArrayLike, "b s v"] | None
    """Vision-language features of the newest pictures that were encoded."""
    vl_mask: Bool[ArrayLike, "b s"] | None
    """Which slots are there; an absent view's are not."""
    sensor: Float[ArrayLike, "b t c"] | None = None
    """Newest sensor rows, oldest first; channel 0 is the force, the others are depth bins of the A-scan."""
    has_sensor: Bool[ArrayLike, " b"] | None = None
    """Which rows of the batch have a sensor window; the windows of the others hold nothing."""
    state: Float[ArrayLike, "b p"] | None = None
    """The arm's newest pose, or joints: the values that the data's `DataSpec.state` names."""
    state_window: Float[ArrayLike, "b w p"] | None = None
    """The last of these states, oldest first, `state` the newest of them; as they were recorded."""
    state_window_mask: Bool[ArrayLike, "b w"] | None = None
    """Which of them are there: not those before the episode. There where `state_window` is."""
    feature_age: Float[ArrayLike, " b"] | None = None
    """Seconds from when the oldest picture behind the features was taken to the tick."""
    previous_chunk: Float[ArrayLike, "b h a"] | None = None
    """Actions of the past, for heads that add to them: mm, degrees and what else the data's `ActionSpec` names."""
    prefix: Float[ArrayLike, "b h a"] | None = None
    """Actions from this tick on that are planned already, for policies that go on from them; in the same units."""
    prefix_length: Int[ArrayLike, " b"] | None = None
    """How many actions of `prefix` are promised: they will be executed, whatever the policy predicts. There where
    `prefix` is."""
    plan_length: Int[ArrayLike, " b"] | None = None
    """How many actions of `prefix` are planned, promised ones and others: what guided policies look at. There where
    `prefix` is."""

    @classmethod
    def example(cls, features: FeatureSpec, data: DataSpec, batch_size: int = 1) -> "Observation":
        """Returns an observation of the right shapes, zero everywhere and everything present: for tests, for
        compiling ahead of time and for warming up. float32; a sensor window of unknown length has one row.
        """
        sensor = has_sensor = None
        if data.sensor is not None:
            shape = (batch_size, data.sensor.window or 1, data.sensor.channels)
            sensor, has_sensor = np.zeros(shape, np.float32), np.ones(batch_size, bool)
        return cls(
            vl=np.zeros((batch_size, features.num_slots, features.width), np.float32),
            vl_mask=np.ones((batch_size, features.num_slots), bool),
            sensor=sensor,
            has_sensor=has_sensor,
            state=np.zeros((batch_size, len(data.state)), np.float32) if data.state else None,
            feature_age=np.zeros(batch_size, np.float32),
            previous_chunk=np.zeros((batch_size, data.actions.horizon, data.actions.size), np.float32),
        )

    @property
    def batch_size(self) -> int:
        """b."""
        return jax.tree.leaves(self)[0].shape[0]

    def replace(self, **changes: Any) -> "Observation":
        """Returns a copy with other values in the named fields."""
        return dataclasses.replace(self, **changes)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ResidentRows:
    """Which rows of arrays on the devices belong to a sample, where a batch leaves them there. None: not resident."""

    vl: Int[ArrayLike, " b"] | None = None
    """Row of the feature table; its length stands for no record."""
    sensor: Int[ArrayLike, "b 2"] | None = None
    """The stream's rows [begin, end) that a window may use; −1 without sensor."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Training or evaluation samples, in recorded units."""

    observation: Observation
    actions: Float[ArrayLike, "b h a"]
    """What happened from the tick on, the answer; the episode's last action is repeated."""
    confidence: Float[ArrayLike, " b"]
    """Weight of the sample's episode."""
    tick: Int[ArrayLike, " b"]
    """Row of the data set's tick table."""
    valid: Bool[ArrayLike, " b"]
    """False for rows that only fill a batch up."""
    resident: ResidentRows = ResidentRows()
    """What the observation leaves to the devices."""
    columns: Mapping[str, ArrayLike] = dataclasses.field(default_factory=dict)
    """Registered per-tick columns that batches carry (`vla_jax.dataset.schema`), by name."""

    def replace(self, **changes: Any) -> "Batch":
        """Returns a copy with other values in the named fields."""
        return dataclasses.replace(self, **changes)
