"""One insertion after the other in real time, each judged at its end as `rollout` does."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.phantom import PhantomEnvironment
from experiments.phantom.lab.arm import Arm
from experiments.phantom.lab.world import StepClock, StreamedWorld
from experiments.phantom.simulator import STEP_S
from vla_jax.contracts.environment import Outcome, Reading

_STILL = np.zeros(6)


@dataclass(frozen=True)
class Insertion:
    """What became of one. Times are true unix seconds."""

    seed: int
    instruction: str
    began_s: float
    ended_s: float
    outcome: Outcome
    commands: int
    """`dpose` commands that arrived during it."""

    def __str__(self) -> str:
        outcome = self.outcome.failure or "success"
        return f"{outcome}, {self.ended_s - self.began_s:.1f} s ({self.instruction})"

    def to_json(self) -> dict[str, Any]:
        """Returns it for lab.json."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        outcome = fields.pop("outcome")
        return {**fields, "success": outcome.success, "failure": outcome.failure, **outcome.measures}


@dataclass(frozen=True)
class Course:
    """How the insertions follow each other."""

    pause_s: float = 2.0
    """Before each of them, at least."""
    demonstrator: bool = False
    """The scripted demonstrator moves the arm; commands are ignored."""


def insert(
    seeds: Sequence[int],
    make_environment: Callable[[], PhantomEnvironment],
    course: Course,
    arm: Arm,
    steps: StepClock,
    stream: Callable[[PhantomEnvironment], StreamedWorld],
    is_awaited: Callable[[], bool],
    is_stopped: Callable[[], bool],
) -> Iterator[Insertion]:
    """Yields the insertions as they end; stops early once `is_stopped`.

    Before each, sensor and cameras show its world at rest, and the robot is silent, for `pause_s` and until somebody
    listens (`is_awaited`). It then begins anew, so that it is the same world as in `rollout`, noise included.
    """
    for seed in seeds:
        resting = stream(make_environment())
        resting.environment.reset(seed)
        _pause(resting, course.pause_s, steps, is_awaited, is_stopped)
        if is_stopped():
            return
        world = stream(make_environment())
        reading = world.environment.reset(seed)
        # The still step before time 0; of its states the last, which begins the episode.
        world.start_s = steps.next() + STEP_S
        world.send(reading, states=slice(-1, None))
        arm.begin()
        before = arm.counts["dpose"]
        while not world.environment.is_over() and not is_stopped():
            reading = _step(world, arm, steps, demonstrator=course.demonstrator)
            world.send(reading, states=slice(None))
        world.send_end()
        if is_stopped():
            return  # It was cut short.
        yield Insertion(
            seed=seed,
            instruction=world.environment.simulator.scenario.instruction,
            began_s=world.start_s,
            ended_s=world.start_s + world.environment.simulator.time_s,
            outcome=world.environment.outcome(),
            commands=arm.counts["dpose"] - before,
        )


def _step(world: StreamedWorld, arm: Arm, steps: StepClock, *, demonstrator: bool) -> Reading:
    begins, environment = steps.next(), world.environment
    if demonstrator:
        return environment.step(environment.expert_action())
    return environment.step(np.append(arm.advance(begins, environment.simulator.pose), 1.0))


def _pause(
    world: StreamedWorld,
    pause_s: float,
    steps: StepClock,
    is_awaited: Callable[[], bool],
    is_stopped: Callable[[], bool],
) -> None:
    """Lets a world stand still."""
    paused_s = 0.0
    while (paused_s < pause_s or not is_awaited()) and not is_stopped():
        world.start_s = steps.next() - world.environment.simulator.time_s
        world.send(world.environment.simulator.step(_STILL), states=None)
        paused_s += STEP_S
