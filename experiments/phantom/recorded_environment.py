"""What a policy did in the phantom, written as episodes with what the demonstrator would have done at every tick.

Training on them is DAgger (Ross, Gordon, Bagnell, "A reduction of imitation learning and structured prediction to
no-regret online learning", AISTATS 2011): the policy sees the states that it itself gets into.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.phantom.environment import TIME_LIMIT_S, PhantomEnvironment
from experiments.phantom.episode_writer import write_episode
from experiments.phantom.recording import Recorder
from experiments.phantom.scenario_seeds import SEEDS_APART
from experiments.phantom.simulator import PhantomSimulator
from vla_jax.contracts.environment import Outcome, Reading

STAGING_NAME = ".partial"
_FIRST_START_TIME = 1_798_761_600.0  # 2027-01-01, after the demonstrations
_SECONDS_BETWEEN_EPISODES = 60.0


class RecordedPhantom(PhantomEnvironment):
    """A `PhantomEnvironment` that writes each episode when it is judged: OUT/<Colour>_point/<name>_<seed>."""

    def __init__(
        self, simulator: PhantomSimulator, out: Path, name: str, *, time_limit_s: float = TIME_LIMIT_S
    ) -> None:
        super().__init__(simulator, time_limit_s=time_limit_s)
        self._out, self._name = out, name

    def reset(self, seed: int | np.random.SeedSequence) -> Reading:
        """See `PhantomEnvironment`."""
        self._number = seed if isinstance(seed, int) else int(seed.generate_state(1)[0])
        reading = super().reset(seed)
        self._recorder = Recorder(self.simulator, reading)
        return reading

    def step(self, action: NDArray) -> Reading:
        """See `PhantomEnvironment`."""
        self._recorder.before(self.expert_action())
        reading = super().step(action)
        self._recorder.after(reading)
        return reading

    def outcome(self) -> Outcome:
        """Judges the insertion and writes it, over what was written of the same seed before."""
        outcome = super().outcome()
        recording = self._recorder.finish(is_corrected=True)
        # By its place among its seed's scenarios: the seeds themselves would lead centuries ahead.
        start_time = _FIRST_START_TIME + self._number % SEEDS_APART * _SECONDS_BETWEEN_EPISODES
        directory = self._out / recording.scenario.task / f"{self._name}_{self._number:08d}"
        write_episode(
            directory,
            self._out / STAGING_NAME,
            recording,
            start_time=start_time,
            overlapping_windows=False,
            ground_truth={
                "policy": self._name,
                "seed": self._number,
                "outcome": outcome.failure or "success",
            },
        )
        return outcome
