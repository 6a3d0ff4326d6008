"""Scenarios outside the training distribution: one level in each direction."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from experiments.phantom.scenario import UNSEEN_COLOURS, Scenario, TissueMotion

Shift = Callable[[Scenario, np.random.Generator], Scenario]


def _start_wider(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """Moves the start away from the marker and tilts the needle more: by half of what is drawn in training."""
    marker, start = np.array(scenario.marker_xy_mm), np.array(scenario.start_pose)
    start[:2] = marker + 1.5 * (start[:2] - marker)
    start[2] += 1.5
    start[3:] *= 1.5
    return replace(scenario, start_pose=tuple(start.tolist()))


def _breathing(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    motion = TissueMotion(
        amplitude_mm=float(rng.uniform(0.3, 0.8)),
        rate_hz=float(rng.uniform(0.2, 0.3)),
        phase=float(rng.uniform(0, 2 * np.pi)),
        direction=float(rng.uniform(0, 2 * np.pi)),
    )
    # The demonstrator holds the needle at its stop for a whole breath.
    return replace(scenario, motion=motion, hold_s=1 / motion.rate_hz)


SHIFTS: dict[str, Shift] = {
    "none": lambda scenario, rng: scenario,
    # Drawn: noise of 2.2 dB.
    "speckle": lambda scenario, rng: replace(scenario, ascan_noise_db=3.3),
    # Drawn: deviation 0.02, offset 2 units.
    "gain": lambda scenario, rng: replace(
        scenario,
        ascan_gain=scenario.ascan_gain * rng.choice([0.92, 1.08]),
        force_gain=scenario.force_gain * 1.15,
    ),
    # Drawn: 0.3 to 0.5 N, 0.8 to 3 mm.
    "membrane": lambda scenario, rng: replace(
        scenario, puncture_n=float(rng.uniform(0.5, 0.7)), membrane_mm=float(rng.uniform(3.0, 3.6))
    ),
    # Drawn: 4 to 9 mm.
    "deeper": lambda scenario, rng: replace(scenario, target_mm=float(rng.uniform(9.0, 10.0))),
    "shallower": lambda scenario, rng: replace(
        scenario, target_mm=float(rng.uniform(3.2, 4.0)), membrane_mm=float(rng.uniform(0.8, 2.0))
    ),
    # Drawn: 0.93 to 1.05.
    "brightness": lambda scenario, rng: replace(scenario, brightness=float(rng.choice([0.8, 1.2]))),
    "marker": lambda scenario, rng: replace(scenario, marker=next(iter(UNSEEN_COLOURS))),
    "start": _start_wider,
    "breathing": _breathing,
}
"""What a scenario becomes, by name."""
