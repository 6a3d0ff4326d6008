"""An episode once more, for whoever wants to see it: nothing but its seed and its actions has to be kept."""

from collections.abc import Iterator

from vla_jax.contracts.environment import Environment, Reading
from vla_jax.evaluation.closed_loop import Rollout


def replay(environment: Environment, rollout: Rollout) -> Iterator[Reading]:
    """Yields the readings of an episode's n+1 ticks: equal seeds and actions give equal readings.

    environment: like the one that the episode happened in. What a reading holds may be overwritten by the next step
        where the environment does so; copy what is to stay.
    """
    yield environment.reset(rollout.seed)
    for action in rollout.actions:
        yield environment.step(action)
