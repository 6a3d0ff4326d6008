"""One episode in memory: the scripted demonstrator, driven through the simulator, and what was recorded."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from experiments.phantom.demonstrator import InsertionState, SpeedVariation, demonstrator_action
from experiments.phantom.scenario import Scenario
from experiments.phantom.simulator import STEP_S, PhantomSimulator
from vla_jax.contracts.environment import Reading

NEAR_TARGET_MM = 1.0
_MAX_STEPS = 400


@dataclass(frozen=True)
class Segment:
    """A named stretch of the episode, s since its start; the borders lie between control ticks."""

    name: str
    start_s: float
    end_s: float


@dataclass
class Recording:
    """An episode. Times in s since the first pose.

    pose_times_s [p], poses [p, 6] at 100 Hz; sensor_times_s [n], sensor [n, 1026] float16 at 650 Hz or None;
    images: list of (time, view -> uint8 [size, size, 3]) at 5 Hz.
    """

    scenario: Scenario
    pose_times_s: NDArray
    poses: NDArray
    sensor_times_s: NDArray
    sensor: NDArray | None
    images: list[tuple[float, Mapping[str, NDArray]]]
    segments: list[Segment] = field(default_factory=list)
    corrections: NDArray | None = None
    """What should have been done from each control tick on, [k, 7], ticks 0.1 s apart from time 0; None: what was
    done."""


class Recorder:
    """Keeps what a simulator's streams hold from the start of an episode on."""

    def __init__(self, simulator: PhantomSimulator, reading: Reading) -> None:
        """reading: the first, after the reset."""
        self._simulator = simulator
        self._traces = [simulator.trace]
        self._images = [(reading.image_time_s, reading.images)]
        self._states: list[InsertionState] = []
        self._corrections: list[NDArray] = []

    def before(self, action: NDArray) -> None:
        """Notes the state before a step, and what the demonstrator would do in it."""
        self._states.append(self._simulator.state)
        self._corrections.append(action)

    def after(self, reading: Reading) -> None:
        """Notes what a step brought."""
        self._traces.append(self._simulator.trace)
        if reading.images and reading.image_time_s > self._images[-1][0]:
            self._images.append((reading.image_time_s, reading.images))

    def finish(self, *, is_corrected: bool) -> Recording:
        """Returns the recording. is_corrected: whether what was done is not what should have been."""
        traces = self._traces
        sensors = [trace.sensor for trace in traces if trace.sensor is not None]
        return Recording(
            scenario=self._simulator.scenario,
            # Of the still step before the start, only the pose at time 0 is kept.
            pose_times_s=np.concatenate([traces[0].pose_times_s[-1:], *(t.pose_times_s for t in traces[1:])]),
            poses=np.concatenate([traces[0].poses[-1:], *(t.poses for t in traces[1:])]),
            sensor_times_s=np.concatenate([t.sensor_times_s for t in traces]),
            sensor=np.concatenate(sensors, dtype=np.float16, casting="same_kind") if sensors else None,
            images=self._images if self._images[0][1] else [],
            segments=find_segments(self._states),
            corrections=np.stack(self._corrections) if is_corrected else None,
        )


def record_demonstration(simulator: PhantomSimulator, seed: np.random.SeedSequence) -> Recording:
    """Lets the demonstrator insert the needle of `seed`'s scenario and returns what was recorded.

    Where the arm is disturbed, what the demonstrator does is kept as corrections, since the motion is not its own.
    The sensor's stream begins one step (0.1 s) before the first pose, so that a full window exists at the first tick.
    """
    recorder = Recorder(simulator, simulator.reset(seed))
    variation_seed = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, 1))
    variation = SpeedVariation(np.random.Generator(np.random.SFC64(variation_seed)))
    hold_steps = round(simulator.scenario.hold_s / STEP_S)
    for _ in range(_MAX_STEPS):
        state = simulator.state
        hold_steps -= state.is_at_stop
        action = demonstrator_action(state, STEP_S, variation.step(STEP_S))
        recorder.before(action)
        recorder.after(simulator.step(action))
        if hold_steps <= 0:
            return recorder.finish(is_corrected=simulator.disturbance is not None)
    raise RuntimeError(
        f"the demonstrator has not reached the target in {_MAX_STEPS} steps: {simulator.scenario}"
    )


def find_segments(states: list[InsertionState]) -> list[Segment]:
    """Returns the named stretches of an episode from the state at every control tick."""
    above = np.array([state.depth_mm < 0 for state in states])
    aligned = np.array([state.is_aligned for state in states])
    at_stop = np.array([state.is_at_stop for state in states])
    to_target = np.array([state.depth_mm - state.target_mm for state in states])
    masks = {
        "align": above & ~aligned,
        "approach": above & aligned,
        "insert": ~above & ~at_stop,
        "near_target": np.abs(to_target) <= NEAR_TARGET_MM,
        "hold": at_stop,
    }
    return [
        Segment(name, (first - 0.5) * STEP_S, (last + 0.5) * STEP_S)
        for name, mask in masks.items()
        for first, last in _runs(mask)
    ]


def _runs(mask: NDArray) -> list[tuple[int, int]]:
    """Returns (first, last) of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(first), int(stop) - 1) for first, stop in edges.reshape(-1, 2)]
