"""Typed identity of actions, data and features: what must agree between a data set, a policy and a robot.

A data set stores its `DataSpec`; a checkpoint stores the `DataSpec` and the `FeatureSpec` it was trained on; a server
tells them to its clients. `differences` says in words what does not fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from vla_jax.contracts.checks import Range, check
from vla_jax.contracts.provenance import Provenance

Alignment = Literal["timestamp", "index"]


@dataclass(frozen=True)
class ActionSpec:
    """A chunk of actions: `horizon` rows of `size` numbers, one row for each control tick."""

    names: tuple[str, ...]
    """One name for each dimension."""
    units: tuple[str, ...]
    """Unit of each dimension: "mm", "deg", … and "" where there is none."""
    horizon: int
    """Actions in a chunk."""
    rate_hz: float | None
    """Control ticks in a second; None where it is not known."""
    low: tuple[float, ...] | None = None
    """Smallest value of each dimension in the training episodes; None where it is not known."""
    high: tuple[float, ...] | None = None
    """Largest value, likewise."""

    @property
    def size(self) -> int:
        """Number of action dimensions."""
        return len(self.names)

    @property
    def control_hz(self) -> float:
        """Control ticks in a second; the lab's where it is not known."""
        return self.rate_hz or LAB_RATE_HZ

    @property
    def before_first(self) -> np.ndarray:
        """[size] float32: what stands for the action before an episode's first. Nothing moves, and a dimension that is
        constant in the training episodes (a closed gripper) is what it always is."""
        if self.low is None or self.high is None:
            return np.zeros(self.size, np.float32)
        return np.where(np.equal(self.low, self.high), self.low, 0.0).astype(np.float32)

    def dims(self, unit: str) -> tuple[int, ...]:
        """Returns the dimensions that have this unit."""
        return tuple(i for i, name in enumerate(self.units) if name == unit)

    @property
    def unit_text(self) -> str:
        """The units in words, for instance "mm and degrees"; what is not known is called the data's own."""
        known = dict.fromkeys("degrees" if unit == "deg" else unit for unit in self.units if unit)
        return " and ".join(known) or "the data's own units"

    def differences(self, other: "ActionSpec") -> list[str]:
        """Returns where `other`, the policy's, disagrees; limits may differ."""
        return _disagreements(self, other, ("names", "units", "horizon", "rate_hz"), "action ")


LAB_RATE_HZ = 10.0
LAB_ACTIONS = ActionSpec(
    names=("dx", "dy", "dz", "da", "db", "dr", "gripper"),
    units=("mm", "mm", "mm", "deg", "deg", "deg", ""),
    horizon=8,
    rate_hz=LAB_RATE_HZ,
)
"""Pose deltas: what x, y, z in the arm's base frame and its three angles change from tick to tick. Those of angles are
differences of the recorded numbers, wrapped to (−180, 180], whatever their convention: nothing here composes rotations.
The lab's arm (Meca500) and the phantom use mobile XYZ."""


LAB_STATE = ("x", "y", "z", "a", "b", "r")
"""The lab arm's pose: mm in its base frame, and three angles in degrees."""
LAB_ANGLES = ("a", "b", "r")
"""Those of `LAB_STATE` that are angles in degrees."""

MAX_FEATURE_AGE_S = 3.0
"""Largest age of features, in seconds, that policies are trained for; older ones are told as this old."""


@dataclass(frozen=True)
class SensorSpec:
    """The fibre sensor's window. Channel 0 is the force, the others are depth bins of the A-scan."""

    channels: int = 1026
    window: int | None = 65
    """Rows of a window; None where any number will do."""
    hz: float | None = 650.0
    """Rows in a second; None where it is not known."""


@dataclass(frozen=True)
class StateWindow:
    """Which of the arm's last states a policy reads."""

    rows: Annotated[int, Range(low=2, high=1000)] = 8
    """States, the newest included."""
    every: Annotated[int, Range(low=1, high=1000)] = 1
    """Control ticks from one to the next."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class DataSpec:
    """What one sample of a data set means."""

    actions: ActionSpec
    views: tuple[str, ...] | None
    """Camera views, in the order of their slots; () without cameras, None where they are not known."""
    sensor: SensorSpec | None
    """None where no episode has a sensor."""
    state: tuple[str, ...] = ()
    """Names of the recorded pose (or joint) values of each tick; () where only actions were recorded."""
    alignment: Alignment | None = "timestamp"
    """How pictures and sensor rows were paired with ticks; None where it is not known."""
    refresh_ticks: int | None = 3
    """Control ticks that share one camera instant's features; None where it is not known."""

    def differences(self, other: "DataSpec") -> list[str]:
        """Returns where `other`, the policy's, disagrees in what changes the meaning of a sample.

        Alignment and refresh may differ: they decide how old an observation is, not what it means. A sensor that one
        side lacks is no difference: a policy acts without it as it was trained to.
        """
        faults = self.actions.differences(other.actions)
        faults += _disagreements(self, other, ("views",))
        if self.sensor is not None and other.sensor is not None:
            faults += _disagreements(self.sensor, other.sensor, ("channels", "window", "hz"), "sensor ")
        return faults


@dataclass(frozen=True)
class FeatureSpec:
    """Vision-language features: what made them, and the slots they fill."""

    num_slots: int
    """Slots S of a record, at most."""
    width: int
    """Numbers V in a slot."""
    provenance: Provenance | None = None
    """What made them; None where it is not known (imported policies)."""

    @property
    def has_fixed_slots(self) -> bool:
        """Whether a slot means the same in every record."""
        return self.provenance is not None and self.provenance.pooling != "tokens"

    def differences(self, other: "FeatureSpec") -> list[str]:
        """Returns where `other`, the policy's, disagrees."""
        faults = _disagreements(self, other, ("width",), "feature ")
        if self.has_fixed_slots or other.has_fixed_slots:
            faults += _disagreements(self, other, ("num_slots",))
        elif self.num_slots > other.num_slots:
            faults.append(f"num_slots is {self.num_slots}, the policy's is at most {other.num_slots}")
        if self.provenance is not None and other.provenance is not None:
            faults += self.provenance.differences(other.provenance)
        return faults


def _disagreements(ours: object, theirs: object, names: Sequence[str], what: str = "") -> list[str]:
    """Names each field that differs; None on either side is not known, and differs from nothing."""
    faults = []
    for name in names:
        a, b = getattr(ours, name), getattr(theirs, name)
        if a is None or b is None:
            continue
        equal = bool(np.isclose(a, b, rtol=1e-6)) if isinstance(a, float) else a == b
        if not equal:
            faults.append(f"{what}{name} is {_text(a)}, the policy's is {_text(b)}")
    return faults


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
