"""The phantom as a world that policies act in and that judges what they did."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from experiments.phantom.ascan import BIN_MM
from experiments.phantom.demonstrator import STOP_DEPTH_MM, demonstrator_action
from experiments.phantom.judgement import InsertionTrace, judge
from experiments.phantom.simulator import STEP_S, PhantomSimulator
from vla_jax.contracts.environment import Outcome, Reading, Scene
from vla_jax.contracts.specs import LAB_ACTIONS, ActionSpec

TIME_LIMIT_S = 26.0
"""The demonstrator needs at most 20 s."""


class PhantomEnvironment:
    """An insertion in a `PhantomSimulator` (`vla_jax.contracts.environment.Environment`).

    It is over when the needle stands still in the phantom, or when the time is up; before it has entered, a policy may
    wait. A fault does not end it: how far it goes is measured.
    """

    actions: ActionSpec = LAB_ACTIONS

    def __init__(self, simulator: PhantomSimulator, *, time_limit_s: float = TIME_LIMIT_S) -> None:
        self.simulator = simulator
        self.time_limit_s = time_limit_s
        self._tips: list[NDArray] = []
        self._arms: list[NDArray] = []
        self._forces: list[float] = []

    def reset(self, seed: int | np.random.SeedSequence) -> Reading:
        """Starts an episode with the scenario of `seed`."""
        self._tips, self._arms, self._forces = [], [], []
        return self._noted(self.simulator.reset(seed))

    def step(self, action: NDArray) -> Reading:
        """Moves the needle by an action (7,): dx dy dz in mm, da db dr in degrees, the gripper unused."""
        return self._noted(self.simulator.step(action))

    def is_over(self) -> bool:
        """Whether the needle stands still in the phantom, or the time is up."""
        if self.simulator.time_s > self.time_limit_s - STEP_S / 2:
            return True
        trace = self.trace()
        return bool(trace.depth_mm[-1] > 0) and trace.has_stopped

    def outcome(self) -> Outcome:
        """Judges the insertion up to now, see `experiments.phantom.judgement`."""
        trace, layers = self.trace(), self.simulator.scenario.layers
        scene = Scene(
            tip_mm=trace.tip_mm,
            force_n=trace.force_n,
            layers_mm={
                "surface": 0.0,
                "membrane": layers.membrane_mm,
                "target layer": layers.target_mm,
                "stop": trace.stop_mm,
                "target layer's back": layers.target_back_mm,
            },
            ascan_bin_mm=BIN_MM if self.simulator.has_sensor else None,
        )
        return replace(judge(trace), scene=scene)

    def expert_action(self) -> NDArray:
        """Returns what the demonstrator would do now, (7,)."""
        return demonstrator_action(self.simulator.state, STEP_S)

    def trace(self) -> InsertionTrace:
        """Returns the true path of the tip up to now."""
        return InsertionTrace(
            tip_mm=np.stack(self._tips),
            arm_mm=np.stack(self._arms),
            force_n=np.array(self._forces),
            stop_mm=self.simulator.scenario.target_mm + STOP_DEPTH_MM,
            tick_s=STEP_S,
        )

    def _noted(self, reading: Reading) -> Reading:
        state = self.simulator.state
        self._tips.append(np.append(-state.lateral_mm, state.depth_mm))
        self._arms.append(self.simulator.pose[:3])
        self._forces.append(float(self.simulator.trace.force_n.max()))
        return replace(reading, expert_action=self.expert_action())
