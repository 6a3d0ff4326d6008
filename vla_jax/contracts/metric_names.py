"""Names of what a run logs, `group/name`, and what decides on the best checkpoint."""

import math
from collections.abc import Mapping

LOSS = "train/loss"
GRADIENT_NORM = "train/gradient_norm"
LEARNING_RATE = "train/learning_rate"

RATE = "time/samples_per_second"
WAITING = "time/data_wait_share"
"""Share of the time in which the loop waited for data."""

VALIDATION = "validation"
"""Group of the held-out errors of the weights that evaluation uses."""
LIVE_VALIDATION = "validation_live"
"""Those of the weights without averaging."""
BEST_METRIC = f"{VALIDATION}/action_mse"
CLOSED_LOOP = "closed_loop"
"""Group of what roll-outs while training find (`vla_jax.training.closed_loop`)."""
FAILURE_RATE, CLOSED_LOOP_ERROR = f"{CLOSED_LOOP}/failure_rate", f"{CLOSED_LOOP}/error"


def best_score(metrics: Mapping[str, float]) -> tuple[float, ...] | None:
    """Returns what the best of a run's checkpoints has least of; None where it was not judged.

    Roll-outs decide where there are any, before every held-out error: those do not rank policies.
    """
    if FAILURE_RATE in metrics:
        return (0.0, metrics[FAILURE_RATE], metrics.get(CLOSED_LOOP_ERROR, math.inf))
    if BEST_METRIC in metrics:
        return (1.0, metrics[BEST_METRIC])
    return None
