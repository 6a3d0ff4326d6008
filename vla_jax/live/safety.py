"""What may reach the arm, whatever the network says: limits, and what happens where one is violated.

A state machine without clocks, files or sockets. Three outcomes at each tick: the action, the action cut to the limits
along its way (`cutting`), or a hold (nothing moves) where the arm is outside its workspace, the force is beyond its
limit, or what is known is missing or old; a hold that lasts becomes a stop, which is final.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from vla_jax.live.cutting import cut_acceleration, cut_speed, cut_to_workspace
from vla_jax.live.observing import Seen

Intervention = Literal["limit", "hold", "stop"]
GROSS = 10.0
"""An action beyond so many times a limit is not cut but refused: it is no motion, but a broken policy."""


@dataclass(frozen=True)
class SafetyLimits:
    """Axes: a action dimensions, the first p of which move the pose's p values."""

    low: Float[np.ndarray, " a"]
    """Smallest action of a tick."""
    high: Float[np.ndarray, " a"]
    """Largest: with the smallest, the speed of each axis."""
    max_change: Float[np.ndarray, " a"]
    """Largest difference between two actions: the acceleration of each axis."""
    pose_low: Float[np.ndarray, " p"]
    """Smallest values that the pose may come to; −inf where nothing is asked."""
    pose_high: Float[np.ndarray, " p"]
    groups: Sequence[Sequence[int]] = ()
    """Action dimensions that are one motion, and keep its direction when one of them is cut."""
    angles: Sequence[int] = ()
    """Which of the pose's values are angles in degrees: compared by the shorter way round."""
    force: tuple[float, float] = (-math.inf, math.inf)
    """Smallest and largest value of the sensor's force, in its own units."""
    max_age_s: Mapping[str, float] = field(default_factory=dict)
    """How old what the policy sees may be, by name (`vla_jax.live.observing`); what is named must be there."""
    stop_after_s: float = 10.0
    """A hold that lasts so long becomes a stop."""


@dataclass(frozen=True)
class Decision:
    """What is sent at a tick: the action, or nothing where it is a stop."""

    action: Float[np.ndarray, " a"]
    intervention: Intervention | None = None
    reasons: tuple[str, ...] = ()


class SafetyMonitor:
    """Decides on one action after another."""

    def __init__(self, limits: SafetyLimits, still: Float[np.ndarray, " a"]) -> None:
        """still: the action that moves nothing."""
        self.limits = limits
        self._still = np.asarray(still, np.float32)
        self._previous = self._still
        self._held_since: float | None = None
        self._stopped: tuple[str, ...] = ()

    @property
    def is_holding(self) -> bool:
        """Whether the last decision held the arm."""
        return self._held_since is not None

    @property
    def is_stopped(self) -> bool:
        """Whether nothing will be sent any more."""
        return bool(self._stopped)

    @property
    def previous(self) -> Float[np.ndarray, " a"]:
        """The action decided on last."""
        return self._previous

    def faults(self, seen: Seen) -> list[str]:
        """Returns what of the streams is missing, too old, or beyond its limit: reasons to hold whatever the action."""
        limits, faults = self.limits, []
        for name, limit in limits.max_age_s.items():
            age = seen.age(name)
            if age is None:
                faults.append(f"no {name}")
            elif age > limit:
                faults.append(f"{name} too old")
        if seen.force is not None:
            low, high = limits.force
            # Written so that NaN is a fault.
            if not (float(seen.force.min()) >= low and float(seen.force.max()) <= high):
                faults.append("force")
        return faults

    def decide(
        self, moment: float, action: Float[np.ndarray, " a"] | None, seen: Seen, faults: Sequence[str] = ()
    ) -> Decision:
        """Returns what may be sent.

        moment: seconds, ascending. action: the policy's; None where it has none, which `faults` say why. faults: why
        the arm must be held, of `faults()` and of the caller's own.
        """
        if self._stopped:
            return Decision(self._still, "stop", self._stopped)
        faults, cut = list(faults), []
        if action is None:
            faults = faults or ["no action"]
        elif not np.isfinite(action).all():
            faults.append("action not finite")
        elif not faults:
            action, cut, faults = self._cut(np.asarray(action, np.float32), seen.pose)
        if faults or action is None:
            return self._hold(moment, tuple(faults))
        self._held_since, self._previous = None, action
        return Decision(action, "limit" if cut else None, tuple(cut))

    def hold(self, moment: float, reason: str) -> Decision:
        """Holds the arm between two decisions."""
        return (
            Decision(self._still, "stop", self._stopped) if self._stopped else self._hold(moment, (reason,))
        )

    def stop(self, reason: str) -> Decision:
        """Stops for good."""
        self._stopped = self._stopped or (reason,)
        self._previous = self._still
        return Decision(self._still, "stop", self._stopped)

    def _hold(self, moment: float, reasons: tuple[str, ...]) -> Decision:
        if self._held_since is None:
            self._held_since = moment
        self._previous = self._still
        if moment - self._held_since >= self.limits.stop_after_s:
            return self.stop(f"held for {self.limits.stop_after_s:g} s: {', '.join(reasons)}")
        return Decision(self._still, "hold", reasons)

    def _cut(self, action: np.ndarray, pose: np.ndarray | None) -> tuple[np.ndarray, list[str], list[str]]:
        """Returns the action within speed, acceleration and workspace, what was cut, and why it is refused."""
        limits, cut = self.limits, []
        if self._is_gross(action):
            return action, [], ["speed far beyond its limit"]
        if pose is None:
            return action, [], ["no state"]
        slow = cut_speed(action, limits.low, limits.high, limits.groups)
        if (slow != action).any():
            cut.append("speed")
        smooth = cut_acceleration(slow, self._previous, limits.max_change, limits.groups)
        if (smooth != slow).any():
            cut.append("acceleration")
        inside, astray = cut_to_workspace(
            smooth, pose, limits.pose_low, limits.pose_high, limits.angles, limits.groups
        )
        if (inside != smooth).any():
            cut.append("workspace")
        return inside.astype(np.float32), cut, ["workspace"] if astray.any() else []

    def _is_gross(self, action: np.ndarray) -> bool:
        limits = self.limits
        largest = np.maximum(np.abs(limits.low), np.abs(limits.high))
        return bool((np.abs(action) > GROSS * largest).any())
