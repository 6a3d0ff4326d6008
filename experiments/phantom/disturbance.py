"""What pushes the arm off its course: a recording of how the demonstrator comes back is what a policy learns it from.

Disturbing the demonstrator while its undisturbed action stays the label is DART (Laskey et al., "DART: Noise injection
for robust imitation learning", CoRL 2017), here with rare nudges in place of noise at every tick.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Disturbance:
    """Nudges at random times, each spread over a few steps; deviations of a nudge's size.

    Above the tissue they come from all sides. The tissue holds the needle: in it they go along the needle only, and
    further, so that coming back from too deep is seen.
    """

    every_s: float = 1.5
    """Mean time between two nudges."""
    lateral_mm: float = 0.6
    height_mm: float = 0.35
    angle_deg: float = 1.2
    depth_mm: float = 0.7
    """Along the needle, in the tissue."""
    steps: int = 3
    """Control steps that a nudge takes."""
    most: int = 8
    """Nudges in an episode, at most, so that it ends."""

    def draw(self, is_inside: bool, rng: np.random.Generator) -> NDArray:
        """Returns a nudge (6,): mm and degrees."""
        sizes = [self.lateral_mm, self.lateral_mm, self.height_mm, *[self.angle_deg] * 3]
        if is_inside:
            sizes = [0.0, 0.0, self.depth_mm, 0.0, 0.0, 0.0]
        return rng.normal(0.0, sizes)


class Nudges:
    """The nudges of one episode."""

    def __init__(self, disturbance: Disturbance, rng: np.random.Generator) -> None:
        self._disturbance, self._rng = disturbance, rng
        self._left, self._each, self._done = 0, np.zeros(6), 0

    def step(self, step_s: float, is_inside: bool) -> NDArray:
        """Returns how far the arm is pushed in the next step, (6,). is_inside: whether the tip is in the tissue."""
        begins = self._rng.uniform() < step_s / self._disturbance.every_s
        nudge = self._disturbance.draw(is_inside, self._rng)
        if self._left == 0 and begins and self._done < self._disturbance.most:
            self._done += 1
            self._left, self._each = self._disturbance.steps, nudge / self._disturbance.steps
        if self._left == 0:
            return np.zeros(6)
        self._left -= 1
        return self._each
