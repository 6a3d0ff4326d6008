"""How sure an error is: an interval over episodes, since samples of one episode are alike."""

import numpy as np
from jaxtyping import Float, Int

from vla_jax.contracts.specs import ActionSpec
from vla_jax.evaluation.metrics import MotionDims

NUM_RESAMPLES = 2000
LEVEL = 0.95


def error_intervals(
    predicted: Float[np.ndarray, "n h a"],
    target: Float[np.ndarray, "n h a"],
    episode: Int[np.ndarray, " n"],
    actions: ActionSpec,
) -> dict[str, list[float] | None]:
    """Returns bounds of the motion errors when other episodes like these are drawn (bootstrap, Efron 1979; 95 %).

    episode: number of each sample's. Keys: position_rmse (mm) and angle_rmse (deg), the root mean square lengths of
    the error vectors over the whole horizon; None with fewer than two episodes, or without such dimensions.
    """
    dims = MotionDims.of(actions)
    squared = np.square(np.asarray(predicted, np.float64) - np.asarray(target, np.float64))
    return {
        "position_rmse": _interval(squared[..., dims.translation], episode),
        "angle_rmse": _interval(squared[..., dims.rotation], episode),
    }


def _interval(squared: Float[np.ndarray, "n h d"], episode: Int[np.ndarray, " n"]) -> list[float] | None:
    _, group = np.unique(episode, return_inverse=True)
    num_episodes = int(group.max(initial=-1)) + 1
    if num_episodes < 2 or not squared.size:
        return None
    lengths = squared.sum(axis=-1).mean(axis=1)
    sums, counts = np.bincount(group, lengths), np.bincount(group)
    drawn = np.random.default_rng(0).integers(0, num_episodes, (NUM_RESAMPLES, num_episodes))
    means = np.sqrt(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return [float(bound) for bound in np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]
