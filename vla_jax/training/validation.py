"""Errors on held-out episodes during training."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vla_jax.data import FeatureTable, PackedDataset, sequential_batches
from vla_jax.normalisation import Normaliser
from vla_jax.training.checkpoint import BEST_METRIC
from vla_jax.training.config import TrainConfig
from vla_jax.training.sharding import Mesh, put_batch
from vla_jax.training.state import TrainState


def validation_metrics(
    validate: Any,
    config: TrainConfig,
    dataset: PackedDataset,
    features: FeatureTable,
    normaliser: Normaliser,
    state: TrainState,
    mesh: Mesh,
    root_key: jax.Array,
) -> dict[str, float]:
    """Returns loss and sampled action errors of the averaged weights over the held-out episodes; {} without any.

    "validation/action_mse" and "validation/action_mae" are over all action dimensions, in mm and degrees.
    """
    if not len(features.sample_ticks("val")):
        return {}
    params = state.ema_params if config.ema_decay > 0 else state.params
    sums: list[Mapping[str, jax.Array]] = []
    for index, batch in enumerate(sequential_batches(dataset, features, "val", config.batch_size)):
        key = jax.random.fold_in(root_key, index)
        sums.append(validate(normaliser, params, state.statistics, put_batch(mesh, batch), key))
    totals = {name: sum(np.asarray(part[name], np.float64) for part in sums) for name in sums[0]}
    count = totals["samples"]
    return {
        BEST_METRIC: float(totals["squared_error"].mean() / count),
        "validation/action_mae": float(totals["absolute_error"].mean() / count),
        "validation/loss": float(totals["loss"] / count),
    }
