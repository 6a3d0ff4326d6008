"""The world that a policy acts in: a simulator, or a robot."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8

from vla_jax.contracts.specs import ActionSpec


@dataclass(frozen=True)
class Reading:
    """The newest of everything that a robot's streams hold at a control tick, in recorded units."""

    time_s: float
    """The tick, in seconds since the episode's start."""
    prompt: str
    images: Mapping[str, UInt8[np.ndarray, "height width 3"]]
    """Newest picture of each view; a view that has none yet is absent."""
    image_time_s: float
    """When the oldest of them was exposed, since the episode's start."""
    sensor: Float[np.ndarray, "t c"] | None
    """Newest sensor rows, oldest first; None without a sensor."""
    pose: Float[np.ndarray, " p"]
    """The arm's own pose: mm and degrees."""
    expert_action: Float[np.ndarray, " a"] | None = None
    """What somebody who knows the world would do now; None where nobody does. Policies never see it: it is recorded,
    to learn from."""


@dataclass(frozen=True)
class Scene:
    """What really happened, for whoever looks at an episode: a simulator knows it. Policies never see it."""

    tip_mm: Float[np.ndarray, "n 3"]
    """Of the needle's tip at each control tick, the first at the start: sideways from the goal (x, y), and depth below
    the surface, positive downwards."""
    force_n: Float[np.ndarray, " n"]
    """Largest axial force since the tick before."""
    layers_mm: Mapping[str, float]
    """Depth below the surface of what the needle passes or should stop at, by name, from the top down."""
    ascan_bin_mm: float | None = None
    """Depth of one bin of the sensor's A-scan, whose first bin is at the tip; None without an A-scan."""


@dataclass(frozen=True)
class Outcome:
    """How an episode ended. failure: the reason by name, None on success. measures: what was measured, by name
    with its unit (`depth_error_um`); None where it is not defined. scene: where it is known."""

    success: bool
    failure: str | None = None
    measures: Mapping[str, float | None] = field(default_factory=dict)
    scene: Scene | None = None


class Environment(Protocol):
    """Equal seeds and actions give equal readings."""

    actions: ActionSpec
    """What `step` takes, and how long a step lasts (`rate_hz`)."""

    def reset(self, seed: int) -> Reading:
        """Starts an episode."""

    def step(self, action: Float[np.ndarray, " a"]) -> Reading:
        """Executes one action and returns what is known at the next control tick."""

    def is_over(self) -> bool:
        """Whether the episode has ended by itself; nothing more can change its outcome."""

    def outcome(self) -> Outcome:
        """Judges the episode up to now."""
