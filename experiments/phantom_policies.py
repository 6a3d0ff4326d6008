"""Policies in the phantom: whether they can act there, what makes their features, and their insertions."""

import functools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.data import num_processors
from experiments.phantom.camera import VIEWS
from experiments.phantom.disturbance import Disturbance
from experiments.phantom.environment import TIME_LIMIT_S, PhantomEnvironment
from experiments.phantom.recorded_environment import RecordedPhantom
from experiments.phantom.simulator import NUM_CHANNELS, PhantomSimulator
from vla_jax.contracts.specs import LAB_ACTIONS, LAB_STATE
from vla_jax.errors import UserError

if TYPE_CHECKING:
    from feature_cache.encoder import FeatureEncoder
    from vla_jax.evaluation.closed_loop import Rollout, RolloutSettings
    from vla_jax.policy.insertion_policy import InsertionPolicy
    from vla_jax.policy.residual import Residual

MOST_PARALLEL = 16


@dataclass(frozen=True)
class PhantomWorld:
    """How the phantom's world is set."""

    shift: str = "none"
    """How its scenarios differ from those of the training episodes, a name in `experiments.phantom.shift.SHIFTS`."""
    nudges: bool = False
    """Whether the arm is pushed off its course."""
    record_to: Path | None = None
    """Directory for its episodes."""
    name: str = ""
    """What they are called."""
    time_limit_s: float = TIME_LIMIT_S
    """When an insertion ends, wherever the needle is."""

    def make(self, *, has_sensor: bool = True) -> PhantomEnvironment:
        """Builds it. has_sensor: False leaves the costly A-scans out."""
        simulator = PhantomSimulator(
            shift=self.shift, has_sensor=has_sensor, disturbance=Disturbance() if self.nudges else None
        )
        if self.record_to is None:
            return PhantomEnvironment(simulator, time_limit_s=self.time_limit_s)
        return RecordedPhantom(simulator, self.record_to, self.name, time_limit_s=self.time_limit_s)


class Encoders:
    """The backbone, once for each kind of features that the policies read."""

    def __init__(self, backbone: str) -> None:
        self._backbone = backbone
        self._opened: list[FeatureEncoder] = []

    def of(self, policy: "InsertionPolicy") -> "FeatureEncoder":
        """Returns what makes a policy's features; raises UserError where the backbone does not."""
        from feature_cache.encoder import FeatureEncoder

        for encoder in self._opened:
            if encoder.spec == policy.features and encoder.views == (policy.data.views or ()):
                return encoder
        self._opened.append(FeatureEncoder.open(self._backbone, policy.features, policy.data.views or ()))
        return self._opened[-1]


def check_fits_phantom(run: Path, policy: "InsertionPolicy") -> None:
    """Refuses a policy of another arm, other cameras or another sensor."""
    data = policy.data
    lacking = [
        f"{what} {theirs}, the phantom has {ours}"
        for what, theirs, ours in (
            ("actions", data.actions.names, LAB_ACTIONS.names),
            ("views", data.views, VIEWS),
            ("a sensor of channels", data.sensor and data.sensor.channels, NUM_CHANNELS),
        )
        if theirs is not None and theirs != ours
    ]
    reads_state = policy.config.state is not None or policy.config.state_window is not None
    if reads_state and data.state != LAB_STATE:
        lacking.append(f"state {data.state}, the phantom has {LAB_STATE}")
    if lacking:
        raise UserError(f"{run}: cannot act in the phantom: it has {'; '.join(lacking)}")


def insertions(
    policy: "InsertionPolicy",
    encoders: Encoders,
    seeds: Sequence[int],
    settings: "RolloutSettings",
    *,
    world: PhantomWorld = PhantomWorld(),
    key_seed: int = 0,
    parallel: int = MOST_PARALLEL,
    workers: int = 0,
    residual: "Residual | None" = None,
) -> "Generator[Rollout, None, None]":
    """Yields a policy's insertions in the scenarios of `seeds` as they end.

    key_seed: of the policy's noise. parallel: insertions side by side. workers: processes that simulate; 0 takes one
        for each processor core. residual: corrects its actions.
    """
    import jax

    from vla_jax.evaluation.closed_loop import Inputs, roll_out
    from vla_jax.evaluation.environments import environment_processes

    # A-scans are made only where somebody reads or records them.
    has_sensor = policy.config.uses_sensor or world.record_to is not None
    make = functools.partial(world.make, has_sensor=has_sensor)
    with environment_processes(make, parallel, workers or num_processors()) as environments:
        yield from roll_out(
            policy.predict,
            encoders.of(policy),
            environments,
            seeds,
            settings,
            jax.random.key(key_seed),
            Inputs.of(policy),
            None if residual is None else residual.correct,
        )
