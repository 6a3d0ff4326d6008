"""Seeds of the scenarios that policies are judged in."""

import itertools
from collections.abc import Sequence

from experiments.phantom.scenario import MARKER_COLOURS
from experiments.phantom.simulator import PhantomSimulator
from vla_jax.contracts.checks import unknown_choice
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


def scenarios(seed: int, episodes: int, marker: str | None) -> Sequence[int]:
    """Returns the seeds of so many scenarios: the first ones of `scenario_seeds`, or the first whose marker has this
    colour, so that they have one prompt.

    Raises:
        UserError: as `scenario_seeds`, or there is no such colour.
    """
    check_scenarios(seed, episodes, marker)
    if marker is None:
        return scenario_seeds(seed, episodes)
    simulator = PhantomSimulator(has_sensor=False, has_images=False)

    def fits(each: int) -> bool:
        simulator.reset(each)
        return simulator.scenario.marker == marker

    return list(itertools.islice(filter(fits, scenario_seeds(seed, SEEDS_APART)), episodes))


def check_scenarios(seed: int, episodes: int, marker: str | None) -> None:
    """Raises UserError where `scenarios` would."""
    scenario_seeds(seed, episodes)
    if marker not in (None, *MARKER_COLOURS):
        raise UserError(f"--marker {unknown_choice(marker, tuple(MARKER_COLOURS))}")
