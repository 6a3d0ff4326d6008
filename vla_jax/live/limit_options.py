"""What may be said of an arm's limits; `vla_jax.live.limits` makes limits of it."""

import math
from dataclasses import dataclass

from vla_jax.errors import UserError


@dataclass(frozen=True)
class LimitOptions:
    """What of the limits may be said; the docstrings are what `live --help` says."""

    max_speed: float | None = None
    """Largest action of a tick in mm, along each axis; by default each axis has the range of the training actions."""
    max_turn: float | None = None
    """Likewise in degrees."""
    max_acceleration: float | None = None
    """Largest change from one action to the next, as a share of the axis' largest action; 1 reaches full speed within a
    tick and reverses it within two."""
    workspace_low: tuple[float, float, float] | None = None
    """Smallest x, y, z in mm that the pose may come to."""
    workspace_high: tuple[float, float, float] | None = None
    """Largest."""
    reach: float = 50.0
    """Where no workspace is given: mm along each axis from where the episode begins."""
    tilt: float = 30.0
    """Degrees of each angle from where the episode begins."""
    min_force: float | None = None
    """Smallest value of the sensor's force, in its own units; by default 12 standard deviations of the training rows
    below their mean."""
    max_force: float | None = None
    """Largest, likewise above."""
    state_age: float = 0.25
    """Seconds after which the arm's state is too old."""
    sensor_age: float = 0.25
    """Seconds after which the sensor is too old, for a policy that reads it."""
    camera_gap: float = 0.27
    """Seconds without any picture after which the cameras count as gone; above their period."""
    feature_age: float = 2.5
    """Seconds after which the oldest picture behind the features is too old."""
    stop_after: float = 10.0
    """Seconds that the arm is held before it is stopped for good."""

    def __post_init__(self) -> None:
        for name in ("reach", "tilt", "state_age", "sensor_age", "camera_gap", "feature_age", "stop_after"):
            self._check(name, getattr(self, name))
        for name in ("max_speed", "max_turn", "max_acceleration"):
            if getattr(self, name) is not None:
                self._check(name, getattr(self, name))
        low, high = self.workspace_low, self.workspace_high
        if (low is None) != (high is None):
            raise UserError("give --workspace-low and --workspace-high, both or neither")
        if low is not None and high is not None and not all(map(float.__lt__, low, high)):
            raise UserError("--workspace-low must be below --workspace-high along each axis")
        for value in (self.min_force, self.max_force):
            if value is not None and not math.isfinite(value):
                raise UserError(f"a force limit of {value} is none; leave the option out for the default")

    def _check(self, name: str, value: float) -> None:
        if not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} must be a number above 0, not {value:g}")
