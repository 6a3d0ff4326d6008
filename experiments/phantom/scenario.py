"""What differs from episode to episode, drawn from a seed."""

import math
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from experiments.phantom.tissue import TissueLayers

MARKER_COLOURS = {
    "Red": (200, 35, 35),
    "Green": (30, 140, 60),
    "Blue": (35, 70, 190),
    "Yellow": (225, 185, 30),
}
"""Marker colours (sRGB); the name gives the task folder and the instruction."""
UNSEEN_COLOURS = {"Black": (25, 25, 28)}
"""Of markers that are never drawn, to see what a policy does with one."""
ALL_COLOURS = MARKER_COLOURS | UNSEEN_COLOURS

SURFACE_Z_MM = 60.0
START_XY_MM = (190.0, 0.0)

_LEAN_DEG_PER_MM, _TURN_DEG_PER_MM = 1.0, 1.2


@dataclass(frozen=True)
class TissueMotion:
    """The whole phantom moves as a breathing patient does: up and down, and along one direction sideways."""

    amplitude_mm: float = 0.0
    """Of the sine, up and down; sideways it is half of it."""
    rate_hz: float = 0.25
    phase: float = 0.0
    """Radians."""
    direction: float = 0.0
    """Radians from the base frame's x axis."""

    def at(self, time_s: float) -> tuple[float, float, float]:
        """Returns how far the phantom has moved from where it rests, mm."""
        swing = self.amplitude_mm * math.sin(2 * math.pi * self.rate_hz * time_s + self.phase)
        return self._along(swing)

    def velocity_at(self, time_s: float) -> tuple[float, float, float]:
        """Returns how fast the phantom moves, mm/s."""
        rate = 2 * math.pi * self.rate_hz
        return self._along(self.amplitude_mm * rate * math.cos(rate * time_s + self.phase))

    def _along(self, swing: float) -> tuple[float, float, float]:
        return (0.5 * swing * math.cos(self.direction), 0.5 * swing * math.sin(self.direction), swing)


@dataclass(frozen=True)
class Scenario:
    """One phantom, one marker, one start pose and one sensor. Lengths in mm, angles in degrees, robot base frame."""

    marker: str
    marker_xy_mm: tuple[float, float]
    phantom_xy_mm: tuple[float, float]
    """Centre of the phantom's block."""
    surface_z_mm: float
    start_pose: tuple[float, float, float, float, float, float]
    membrane_mm: float
    target_mm: float
    puncture_n: float
    stiffness_factor: float
    force_offset: float
    """Recorded force without contact; the recordings' zero is arbitrary, at about 2.4."""
    force_gain: float
    ascan_gain: float
    ascan_offset: float
    brightness: float
    hold_s: float
    ascan_noise_db: float = 2.2
    """Deviation of the A-scan's fresh noise."""
    target_thickness_mm: float = 1.2
    motion: TissueMotion = TissueMotion()

    def __post_init__(self):
        if self.marker not in ALL_COLOURS:
            raise ValueError(f"marker {self.marker!r} is none of {', '.join(ALL_COLOURS)}")

    @property
    def layers(self) -> TissueLayers:
        """The tissue under the marker."""
        return TissueLayers(self.membrane_mm, self.target_mm, self.target_thickness_mm)

    def at(self, time_s: float) -> "Scenario":
        """The same with the phantom where it is at a time."""
        if not self.motion.amplitude_mm:
            return self
        x, y, z = self.motion.at(time_s)
        return replace(
            self,
            marker_xy_mm=(self.marker_xy_mm[0] + x, self.marker_xy_mm[1] + y),
            phantom_xy_mm=(self.phantom_xy_mm[0] + x, self.phantom_xy_mm[1] + y),
            surface_z_mm=self.surface_z_mm + z,
        )

    @property
    def task(self) -> str:
        """Name of the task's folder, as the lab names it."""
        return f"{self.marker}_point"

    @property
    def instruction(self) -> str:
        """The prompt."""
        return f"Insert the needle at the {self.marker.lower()} point"

    @property
    def lateral_offset_mm(self) -> tuple[float, float]:
        """From the start pose to the marker."""
        return (self.marker_xy_mm[0] - self.start_pose[0], self.marker_xy_mm[1] - self.start_pose[1])

    def to_json(self) -> dict:
        """Returns every drawn value, and the lateral offset, as JSON types."""
        return asdict(self) | {"lateral_offset_mm": self.lateral_offset_mm}


def draw_scenario(rng: np.random.Generator) -> Scenario:
    """Draws a scenario. What the cameras see (marker, offset, start height), what they cannot (membrane, target layer)
    and the needle's tilt, of which they show little, are independent: a policy must look for each where it is."""
    surface_z = SURFACE_Z_MM + rng.uniform(-0.3, 0.3)
    start_x, start_y = np.add(START_XY_MM, rng.uniform(-0.8, 0.8, 2))
    offset, lean = _draw_offset(rng), _draw_offset(rng)
    start_z = surface_z + rng.uniform(5.0, 8.0)
    tilt_a = _LEAN_DEG_PER_MM * lean[1] + rng.uniform(-1.0, 1.0)
    tilt_b = -_LEAN_DEG_PER_MM * lean[0] + rng.uniform(-1.0, 1.0)
    twist = _TURN_DEG_PER_MM * lean[1] + rng.uniform(-1.0, 1.0)
    return Scenario(
        marker=str(rng.choice(list(MARKER_COLOURS))),
        marker_xy_mm=(float(start_x + offset[0]), float(start_y + offset[1])),
        phantom_xy_mm=tuple(np.add(START_XY_MM, rng.uniform(-0.8, 0.8, 2)).tolist()),
        surface_z_mm=float(surface_z),
        start_pose=(
            float(start_x),
            float(start_y),
            float(start_z),
            float(tilt_a),
            float(tilt_b),
            float(twist),
        ),
        membrane_mm=float(rng.uniform(0.8, 3.0)),
        target_mm=float(rng.uniform(4.0, 9.0)),
        puncture_n=float(rng.uniform(0.3, 0.5)),
        stiffness_factor=float(rng.uniform(0.85, 1.15)),
        force_offset=float(2.4 + rng.normal(0.0, 0.04)),
        force_gain=float(rng.normal(1.0, 0.03)),
        ascan_gain=float(rng.normal(1.0, 0.02)),
        ascan_offset=float(rng.normal(0.0, 2.0)),
        brightness=float(rng.uniform(0.93, 1.05)),
        hold_s=float(rng.uniform(1.5, 2.0)),
    )


def _draw_offset(rng: np.random.Generator) -> NDArray:
    """Draws a place in a square of 8 mm, no closer than 1.5 mm to its centre."""
    while np.hypot(*(offset := rng.uniform(-4.0, 4.0, 2))) < 1.5:
        pass
    return offset
