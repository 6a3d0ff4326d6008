"""The scripted demonstrator: pure state feedback, so that what it does can be learnt from what can be observed.

Sideways and in orientation its speed is proportional to what remains, with saturation. It descends to the surface once
it is aligned, slows down before it, slows down more while it pushes the membrane, and stops inside the target layer; if
it is too deep, it comes back. In the tissue it waits for nothing: only the depth counts there. Where the tissue moves,
it moves along. Nothing depends on time, so equal observations have equal actions, apart from a small variation of the
speed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.phantom.scenario import Scenario

STOP_DEPTH_MM = 0.3
"""How far past the target layer's surface the demonstrator stops."""
ALIGNED_MM = 0.15
ALIGNED_DEG = 0.4
AT_STOP_MM = 0.04

_LATERAL_RATE = 0.8  # 1/s
_LATERAL_MAX_MM_S = 3.0
_ANGULAR_RATE = 0.8  # 1/s
_ANGULAR_MAX_DEG_S = 6.0
_APPROACH_MM_S = 3.5
_INSERT_MM_S = 1.6
_PRESS_MM_S = 1.0
_SLOWING_MM = 1.2
_STOP_RATE = 1.8  # 1/s


@dataclass(frozen=True)
class InsertionState:
    """Where an insertion is, all that the demonstrator goes by. pose: (6,) mm and degrees. Depths in mm below the
    surface. tissue_mm_s: how fast the tissue moves in the base frame."""

    pose: NDArray
    marker_xy_mm: tuple[float, float]
    surface_z_mm: float
    membrane_mm: float
    target_mm: float
    is_punctured: bool
    tissue_mm_s: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def of(cls, scenario: Scenario, time_s: float, pose: NDArray, is_punctured: bool) -> "InsertionState":
        """The state in a scenario at a time."""
        now = scenario.at(time_s)
        return cls(
            pose,
            now.marker_xy_mm,
            now.surface_z_mm,
            now.membrane_mm,
            now.target_mm,
            is_punctured,
            now.motion.velocity_at(time_s),
        )

    @property
    def depth_mm(self) -> float:
        """Depth of the tip below the surface."""
        return float(self.surface_z_mm - self.pose[2])

    @property
    def lateral_mm(self) -> NDArray:
        """What remains sideways, (2,)."""
        return np.asarray(self.marker_xy_mm) - self.pose[:2]

    @property
    def remaining_mm(self) -> float:
        """What remains in depth, to the stop inside the target layer."""
        return self.target_mm + STOP_DEPTH_MM - self.depth_mm

    @property
    def is_aligned(self) -> bool:
        """Whether the needle stands upright over the marker."""
        return bool(
            np.linalg.norm(self.lateral_mm) < ALIGNED_MM and np.max(np.abs(self.pose[3:])) < ALIGNED_DEG
        )

    @property
    def is_at_stop(self) -> bool:
        """Whether the insertion is finished."""
        return abs(self.remaining_mm) < AT_STOP_MM


def demonstrator_velocity(state: InsertionState) -> NDArray:
    """Returns the demonstrator's velocity (6,) over the tissue: mm/s and degrees/s along the base frame's axes."""
    lateral = _towards_zero(state.lateral_mm, _LATERAL_RATE, _LATERAL_MAX_MM_S)
    angular = _towards_zero(-state.pose[3:], _ANGULAR_RATE, _ANGULAR_MAX_DEG_S)
    misaligned = max(
        float(np.linalg.norm(state.lateral_mm)) / ALIGNED_MM,
        float(np.max(np.abs(state.pose[3:]))) / ALIGNED_DEG,
    )
    readiness = 1.0 if state.depth_mm > 0 else 1.0 - _smooth_step((misaligned - 1.0) / 1.5)
    return np.concatenate([lateral, [-readiness * _insertion_speed(state)], angular])


def demonstrator_action(state: InsertionState, step_s: float, speed_factor: float = 1.0) -> NDArray:
    """Returns the demonstrator's action (7,) for a step: dx dy dz in mm, da db dr in degrees, gripper 1.

    speed_factor: about 1, a person's variation of the speed.
    """
    moved = demonstrator_velocity(state) * (speed_factor * step_s)
    if any(state.tissue_mm_s):  # Adding nothing would still make a zero of a -0.
        moved[:3] += np.multiply(state.tissue_mm_s, step_s)
    return np.append(moved, 1.0)


class SpeedVariation:
    """A person's slowly varying speed: a factor about 1, an Ornstein-Uhlenbeck process (5 %, 0.4 s)."""

    def __init__(self, rng: np.random.Generator, sigma: float = 0.05, time_constant_s: float = 0.4):
        self._rng, self._sigma, self._time_constant_s = rng, sigma, time_constant_s
        self._value = rng.normal(0.0, sigma)

    def step(self, step_s: float) -> float:
        """Returns the factor of the next step."""
        keep = np.exp(-step_s / self._time_constant_s)
        self._value = keep * self._value + self._sigma * np.sqrt(1 - keep**2) * self._rng.normal()
        return float(1.0 + self._value)


def _insertion_speed(state: InsertionState) -> float:
    """Returns the speed along the needle, mm/s, positive inwards."""
    if state.depth_mm < 0:
        slowing = np.exp(state.depth_mm / _SLOWING_MM)
        return _APPROACH_MM_S + (_INSERT_MM_S - _APPROACH_MM_S) * slowing
    speed = _INSERT_MM_S
    if not state.is_punctured:
        pressed = _smooth_step((state.depth_mm - state.membrane_mm) / 0.15)
        speed += pressed * (_PRESS_MM_S - _INSERT_MM_S)
    return min(speed, _INSERT_MM_S * np.tanh(_STOP_RATE * state.remaining_mm / _INSERT_MM_S))


def _towards_zero(remaining: NDArray, rate: float, max_speed: float) -> NDArray:
    """Returns a velocity along `remaining`: rate times its length, saturating smoothly at max_speed."""
    length = np.linalg.norm(remaining)
    if length == 0:
        return np.zeros_like(remaining)
    return remaining / length * (max_speed * np.tanh(rate * length / max_speed))


def _smooth_step(x: float) -> float:
    """Returns 0 below 0, 1 above 1, and a smooth rise between."""
    x = min(max(x, 0.0), 1.0)
    return x * x * (3 - 2 * x)
