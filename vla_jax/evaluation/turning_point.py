"""Where along an episode a needle went wrong."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vla_jax.contracts.environment import STOP
from vla_jax.evaluation.closed_loop import Rollout


@dataclass(frozen=True)
class TurningPoint:
    """When a tip was nearest to where it should end: all that came after led away, or nowhere."""

    tick: int
    time_s: float
    """Since the start."""
    distance_mm: float
    """How near."""
    stage: str
    """The last layer passed by then, in words."""
    end_depth_mm: float
    """At the episode's end, past the stop; negative before it."""
    end_lateral_mm: float
    """At the episode's end, sideways from the goal."""


def turning_point(rollout: Rollout) -> TurningPoint | None:
    """Finds it; None where the environment shows no scene, or none with a stop."""
    scene = rollout.outcome.scene
    if scene is None or STOP not in scene.layers_mm:
        return None
    remaining = scene.tip_mm - np.array([0.0, 0.0, scene.layers_mm[STOP]])
    distance = np.linalg.norm(remaining, axis=1)
    tick = int(np.argmin(distance))
    return TurningPoint(
        tick=tick,
        time_s=float(rollout.time_s[tick] - rollout.time_s[0]),
        distance_mm=float(distance[tick]),
        stage=stage_of(float(scene.tip_mm[tick, 2]), scene.layers_mm),
        end_depth_mm=float(remaining[-1, 2]),
        end_lateral_mm=float(np.linalg.norm(remaining[-1, :2])),
    )


def stage_of(depth_mm: float, layers_mm: Mapping[str, float]) -> str:
    """Returns the last layer that a depth lies below, in words."""
    layers = {name: depth for name, depth in layers_mm.items() if name != STOP}
    passed = [name for name, depth in layers.items() if depth <= depth_mm]
    if passed:
        return f"past the {max(passed, key=layers.__getitem__)}"
    return f"before the {min(layers, key=layers.__getitem__)}" if layers else "on the way"
