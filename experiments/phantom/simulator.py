"""The closed loop: needle, tissue, force and A-scan sensor, cameras."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.phantom.ascan import NUM_BINS, AscanModel, recorded_values
from experiments.phantom.camera import NEEDLE_LENGTH_MM, SceneRenderer
from experiments.phantom.demonstrator import InsertionState
from experiments.phantom.disturbance import Disturbance, Nudges
from experiments.phantom.needle_force import NeedleForceParameters, NeedleForceState, needle_force
from experiments.phantom.scenario import Scenario, draw_scenario
from experiments.phantom.shift import SHIFTS
from vla_jax.contracts.environment import Reading

ACTION_HZ, ROBOT_HZ, SENSOR_HZ, CAMERA_HZ = 10, 100, 650, 5
STEP_S = 1.0 / ACTION_HZ
POSES_PER_STEP = ROBOT_HZ // ACTION_HZ
ROWS_PER_STEP = SENSOR_HZ // ACTION_HZ
STEPS_PER_IMAGE = ACTION_HZ // CAMERA_HZ
NUM_CHANNELS = 1 + NUM_BINS
MAX_STEP = np.array([1.0, 1.0, 1.0, 3.0, 3.0, 3.0])
"""The robot moves no faster than this in one step, mm and degrees; larger actions are cut."""

_ACTUATION_SIGMA = np.array([0.004, 0.004, 0.003, 0.012, 0.012, 0.012])
_ENCODER_SIGMA = np.array([0.0005, 0.0005, 0.0005, 0.001, 0.001, 0.001])
_FORCE_NOISE_N = 0.004
_FORCE_DRIFT_N = 0.002
_BREATHING_MM_S = 0.01  # the tissue creeps sideways, so speckle changes slowly even at rest


@dataclass(frozen=True)
class StepTrace:
    """Everything recorded during one step, for the episode's files. Times in s since the start.

    pose_times_s [10], poses [10, 6] at 100 Hz; sensor_times_s [65], sensor [65, 1026] float32 at 650 Hz or None;
    force_n [65]: the true axial force, which the sensor shows with noise and an offset.
    """

    pose_times_s: NDArray
    poses: NDArray
    sensor_times_s: NDArray
    sensor: NDArray | None
    force_n: NDArray


class PhantomSimulator:
    """A needle on a robot above a phantom, stepped at 10 Hz.

    reset(seed) -> Reading; step(action) -> Reading. Equal seeds and actions give equal readings: pictures at 5 Hz, and
    the newest sensor rows, force then A-scan, up to the tick, the oldest one repeated before the stream's start.
    `trace` holds what was recorded during the last step (or, after `reset`, during the still step before time 0),
    `scenario` the drawn ground truth. `image_size`: pixels; `sensor_rows`: rows of the window, 65 or 650;
    `has_sensor`, `has_images`: without them the costly synthesis is left out and `sensor` is None, `images` empty.
    `disturbance`: what pushes the arm while it moves. `shift`: how scenarios differ from those that are trained on, a
    name in `experiments.phantom.shift.SHIFTS`.
    """

    def __init__(
        self,
        *,
        image_size: int = 112,
        sensor_rows: int = ROWS_PER_STEP,
        has_sensor: bool = True,
        has_images: bool = True,
        disturbance: Disturbance | None = None,
        shift: str = "none",
    ):
        if sensor_rows < 1:
            raise ValueError(f"sensor_rows must be positive, not {sensor_rows}")
        self.image_size = image_size
        self.sensor_rows = sensor_rows
        self.has_sensor = has_sensor
        self.has_images = has_images
        self.disturbance = disturbance
        self.shift = shift

    def reset(self, seed: int | np.random.SeedSequence, scenario: Scenario | None = None) -> Reading:
        """Starts an episode; `scenario` replaces the one drawn from the seed."""
        sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        # spawn() would change a caller's sequence, so that a second reset differed.
        streams = np.random.SeedSequence(sequence.entropy, spawn_key=(*sequence.spawn_key, 0)).spawn(6)
        draws, optics, self._motion_rng, self._sensor_rng, self._camera_rng, nudges = map(_generator, streams)
        if scenario is None:
            scenario = SHIFTS[self.shift](draw_scenario(draws), draws)
        self.scenario = scenario
        self._force_parameters = NeedleForceParameters(
            puncture_n=self.scenario.puncture_n,
            stiffness_n_per_mm=0.25 * self.scenario.stiffness_factor,
            stiffness_n_per_mm2=0.60 * self.scenario.stiffness_factor,
        )
        self._ascan = AscanModel(self.scenario.layers, optics) if self.has_sensor else None
        self._renderer = SceneRenderer(self.scenario, self.image_size) if self.has_images else None
        self._nudges = None if self.disturbance is None else Nudges(self.disturbance, nudges)
        self._force_state = NeedleForceState()
        self._force_drift = 0.0
        self._sideways_mm = 0.0
        self._num_steps = -1
        self._pose = np.asarray(self.scenario.start_pose, dtype=np.float64)
        self._window = None
        self._images: dict[str, NDArray] = {}
        self._image_time_s = 0.0
        return self._advance(self._pose.copy())

    def step(self, action: NDArray) -> Reading:
        """Moves the needle by an action (7,) or (6,): dx dy dz in mm, da db dr in degrees, the gripper unused."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape not in ((6,), (7,)) or not np.isfinite(action).all():
            raise ValueError(f"an action is 7 finite numbers, not {action}")
        moved = np.clip(action[:6], -MAX_STEP, MAX_STEP)
        target = self._pose + moved + _ACTUATION_SIGMA * self._motion_rng.standard_normal(6)
        if self._nudges is not None:
            target += self._nudges.step(STEP_S, self.state.depth_mm > 0)
        # The hub would touch the phantom.
        surface_mm = self.scenario.at(self.time_s + STEP_S).surface_z_mm
        target[2] = max(target[2], surface_mm - NEEDLE_LENGTH_MM + 0.5)
        return self._advance(target)

    @property
    def time_s(self) -> float:
        """Time since the start."""
        return self._num_steps * STEP_S

    @property
    def state(self) -> InsertionState:
        """The true state."""
        return InsertionState.of(self.scenario, self.time_s, self._pose, self._force_state.is_punctured)

    @property
    def pose(self) -> NDArray:
        """The true pose of the needle (6,), mm and degrees in the base frame."""
        return self._pose.copy()

    def _advance(self, target: NDArray) -> Reading:
        """Moves to `target` with constant velocity during one step, recording on the way."""
        start, start_s = self._pose, self.time_s
        rows = np.arange(ROWS_PER_STEP)
        before, now = self.scenario.at(start_s), self.scenario.at(start_s + STEP_S)
        tissue = np.subtract(
            [*now.phantom_xy_mm, now.surface_z_mm], [*before.phantom_xy_mm, before.surface_z_mm]
        )
        moved = (target - start)[:3] - tissue
        force, sensor = self._sense(
            before.surface_z_mm - start[2] - moved[2] * rows / ROWS_PER_STEP,
            float(np.linalg.norm(moved[:2])),
            -moved[2] / STEP_S,
        )
        fraction = np.arange(1, POSES_PER_STEP + 1)[:, None] / POSES_PER_STEP
        poses = start + (target - start) * fraction
        self._pose = target
        self._num_steps += 1
        self.trace = StepTrace(
            pose_times_s=start_s + fraction[:, 0] * STEP_S,
            poses=poses + _ENCODER_SIGMA * self._motion_rng.standard_normal(poses.shape),
            sensor_times_s=start_s + rows / SENSOR_HZ,
            sensor=sensor,
            force_n=force,
        )
        if self._renderer is not None and self._num_steps % STEPS_PER_IMAGE == 0:
            # Exposed one robot sample before the tick, so that the newest picture is never later than the tick.
            self._images = self._renderer.render(poses[-2], self._camera_rng, now)
            self._image_time_s = float(self.trace.pose_times_s[-2])
        return Reading(
            time_s=self.time_s,
            prompt=self.scenario.instruction,
            images=self._images,
            image_time_s=self._image_time_s,
            sensor=self._window,
            pose=self.trace.poses[-1],
        )

    def _sense(
        self, depth: NDArray, sideways_mm: float, velocity_mm_s: float
    ) -> tuple[NDArray, NDArray | None]:
        """Returns the force [65] for tip depths [65] and, with a sensor, its rows [65, 1026], for the window too."""
        force, membrane_mm, self._force_state = needle_force(
            self._force_parameters, self.scenario.layers, self._force_state, depth, velocity_mm_s
        )
        if self._ascan is None:
            return force, None
        rng = self._sensor_rng
        self._force_drift = 0.995 * self._force_drift + _FORCE_DRIFT_N * rng.normal()
        self._sideways_mm += sideways_mm + _BREATHING_MM_S * STEP_S
        sensor = np.empty((ROWS_PER_STEP, NUM_CHANNELS), np.float32)
        noise = _FORCE_NOISE_N * rng.standard_normal(ROWS_PER_STEP)
        sensor[:, 0] = (
            self.scenario.force_offset + self.scenario.force_gain * force + self._force_drift + noise
        )
        power = self._ascan.power(depth, membrane_mm, self._sideways_mm)
        scenario = self.scenario
        sensor[:, 1:] = recorded_values(
            power, scenario.ascan_gain, scenario.ascan_offset, scenario.ascan_noise_db, rng
        )
        before = self._window if self._window is not None else np.repeat(sensor[:1], self.sensor_rows, axis=0)
        self._window = np.concatenate([before, sensor])[-self.sensor_rows :]
        return force, sensor


def _generator(sequence: np.random.SeedSequence) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(sequence))
