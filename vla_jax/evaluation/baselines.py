"""Predictions of a policy that learnt nothing, for comparison."""

import numpy as np
from jaxtyping import Float

from vla_jax.dataset.packed_dataset import PackedDataset


def mean_error(dataset: PackedDataset, ticks: np.ndarray) -> float | None:
    """Returns the mean squared error of the training episodes' mean action at some ticks, over all dimensions and the
    whole horizon, in recorded units; None without training episodes or ticks."""
    actions = dataset.statistics.get("actions")
    if actions is None or not len(ticks):
        return None
    return float(np.square(dataset.actions(ticks) - np.asarray(actions.mean, np.float32)).mean())


def baseline_predictions(
    training_mean: Float[np.ndarray, " a"], previous_action: Float[np.ndarray, "n a"], horizon: int
) -> dict[str, Float[np.ndarray, "n h a"]]:
    """Returns what the baselines predict at each of n ticks, in recorded units.

    zero: the arm stands still (gripper 0 too, as the reference's zero baseline has it).
    mean: the mean action of the training episodes.
    previous: the delta just before the tick, repeated; it sees the arm's motion, which a policy of images and
        sensor does not.

    training_mean: mean recorded action. previous_action: action of the tick before; at an episode's start nothing
        moves, and what is constant in the training episodes (the gripper) is what it always is.
    """
    shape = (len(previous_action), horizon, previous_action.shape[-1])
    return {
        "zero": np.zeros(shape, np.float32),
        "mean": np.broadcast_to(np.asarray(training_mean, np.float32), shape),
        "previous": np.broadcast_to(np.asarray(previous_action, np.float32)[:, None], shape),
    }
