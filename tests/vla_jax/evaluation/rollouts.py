"""Episodes made by hand, and a shaft that a needle is lowered in, whose readings are known."""

import numpy as np

from vla_jax.contracts.environment import STOP, Outcome, Reading, Scene
from vla_jax.contracts.specs import ActionSpec
from vla_jax.evaluation.closed_loop import Rollout

ACTIONS = ActionSpec(names=("dx", "dy", "dz", "grip"), units=("mm", "mm", "mm", ""), horizon=3, rate_hz=10.0)
LAYERS = {"surface": 0.0, "membrane": 1.0, STOP: 2.0, "floor": 3.0}
BIN_MM, NUM_BINS = 0.05, 60


class Shaft:
    """The tip begins 2 mm above the surface; actions move it, depth positive downwards. The sensor's A-scan is bright
    where the floor is; View1 is as bright as the tip is deep, and a new one is there at every second tick."""

    actions = ACTIONS

    def __init__(self, has_sensor=True, has_images=True):
        self.has_sensor, self.has_images = has_sensor, has_images

    def reset(self, seed):
        self.tips = [np.array([0.1 * seed, 0.0, -2.0])]
        return self._read()

    def step(self, action):
        self.tips.append(self.tips[-1] + action[:3])
        return self._read()

    def is_over(self):
        return self.tips[-1][2] >= LAYERS[STOP]

    def outcome(self):
        tips = np.stack(self.tips)
        scene = Scene(tips, np.zeros(len(tips)), LAYERS, BIN_MM if self.has_sensor else None)
        error = abs(float(tips[-1, 2] - LAYERS[STOP])) * 1000
        success = error < 100
        return Outcome(success, None if success else "not_there", {"depth_error_um": error}, scene)

    def _read(self):
        tick, depth = len(self.tips) - 1, self.tips[-1][2]
        sensor = np.zeros((4, 1 + NUM_BINS), np.float32)
        floor = int((LAYERS["floor"] - depth) / BIN_MM)
        if floor < NUM_BINS:
            sensor[:, 1 + floor] = 100.0
        images = {
            "View1": np.full((8, 8, 3), np.clip(100 + 20 * depth, 0, 255), np.uint8),
            "View2": np.full((8, 16, 3), 50, np.uint8),
        }
        return Reading(
            time_s=tick / 10,
            prompt="go",
            images=images if self.has_images else {},
            image_time_s=tick // 2 * 2 / 10,
            sensor=sensor if self.has_sensor else None,
            pose=self.tips[-1].copy(),
        )


def lower(seed, *, steps=20, speed=0.2, **settings):
    """An episode of the shaft at a steady speed, decided on at every tick."""
    shaft = Shaft(**settings)
    readings = [shaft.reset(seed)]
    action = np.array([0.0, 0.0, speed, 1.0])
    for _ in range(steps):
        readings.append(shaft.step(action))
    return rollout(
        seed,
        outcome=shaft.outcome(),
        poses=np.stack([reading.pose for reading in readings]),
        actions=np.tile(action, (steps, 1)),
    )


def rollout(
    seed,
    success=True,
    failure=None,
    *,
    outcome=None,
    poses=None,
    actions=None,
    chunks=None,
    at=None,
    action_latency=0,
    **measures,
):
    """An episode with this outcome; chunks are constant at the actions unless given, at the ticks `at`."""
    actions = np.zeros((4, 4)) if actions is None else np.asarray(actions, float)
    num_ticks = len(actions) + 1
    chunks = np.repeat(actions[:, None], 3, axis=1) if chunks is None else np.asarray(chunks, float)
    at = np.arange(len(chunks)) if at is None else np.asarray(at)
    return Rollout(
        seed=seed,
        outcome=outcome or Outcome(success, failure, measures),
        time_s=np.arange(num_ticks) / 10,
        pose=np.zeros((num_ticks, 3)) if poses is None else poses,
        actions=actions,
        decision_tick=at,
        chunks=chunks,
        image_time_s=at / 10,
        action_latency=action_latency,
    )
