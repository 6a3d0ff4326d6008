"""Seeds of the scenarios that policies are judged in."""

import itertools
from collections.abc import Sequence

from experiments.phantom.simulator import PhantomSimulator
from vla_jax.errors import UserError

SEEDS_APART = 1_000_000
"""Scenarios of two seeds are never the same, up to so many episodes."""
MAX_SEED = 2**32 // SEEDS_APART


def scenario_seeds(seed: int, episodes: int) -> range:
    """Returns the seeds of the scenarios of so many episodes; no training episode has a scenario of any.

    Raises:
        UserError: there are no so many, or no such seed.
    """
    if episodes < 1:
        raise UserError(f"--episodes must be at least 1, not {episodes}")
    if episodes > SEEDS_APART or not 0 <= seed < MAX_SEED:
        raise UserError(f"--episodes can be at most {SEEDS_APART}, --seed from 0 to below {MAX_SEED}")
    return range(seed * SEEDS_APART, seed * SEEDS_APART + episodes)


def seeds_of_marker(marker: str, seed: int, episodes: int) -> Sequence[int]:
    """Returns the first seeds of `scenario_seeds` whose scenario has a marker of this colour, and so one prompt.

    Raises:
        UserError: as `scenario_seeds`.
    """
    scenario_seeds(seed, episodes)
    simulator = PhantomSimulator(has_sensor=False, has_images=False)

    def fits(each: int) -> bool:
        simulator.reset(each)
        return simulator.scenario.marker == marker

    return list(itertools.islice(filter(fits, scenario_seeds(seed, SEEDS_APART)), episodes))
