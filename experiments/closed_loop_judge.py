"""Roll-outs in the phantom that judge a policy while it trains."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from experiments.phantom_policies import MOST_PARALLEL, Encoders, check_fits_phantom, insertions

if TYPE_CHECKING:
    from vla_jax.policy.artifact import PolicyArtifact

SCENARIOS = 0
"""The first scenario: those of `rollout --seed 0`, which is therefore for nothing else."""


def make_judge(backbone: str, episodes: int) -> "Callable[[PolicyArtifact], Mapping[str, float]]":
    """Returns what judges a policy by so many insertions: failure_rate, and error, the median depth error in mm.

    An episode in which the needle never entered counts as an infinite error.
    """
    encoders = Encoders(backbone)

    def judge(artifact: "PolicyArtifact") -> Mapping[str, float]:
        from vla_jax.evaluation.closed_loop import RolloutSettings
        from vla_jax.policy.insertion_policy import InsertionPolicy

        policy = InsertionPolicy(artifact)
        check_fits_phantom(artifact.path, policy)
        seeds = range(SCENARIOS, SCENARIOS + episodes)
        settings = RolloutSettings(refresh_ticks=policy.data.refresh_ticks or 3)
        parallel = min(MOST_PARALLEL, episodes)
        rollouts = list(insertions(policy, encoders, seeds, settings, parallel=parallel))
        errors = [rollout.outcome.measures["depth_error_um"] for rollout in rollouts]
        median = float(np.median([math.inf if error is None else error / 1000 for error in errors]))
        failed = sum(not rollout.outcome.success for rollout in rollouts)
        return {"failure_rate": failed / episodes, "error": min(median, 1e3)}

    return judge
