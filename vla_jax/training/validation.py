"""Errors on held-out episodes during training."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from vla_jax.contracts.metric_names import LIVE_VALIDATION, VALIDATION
from vla_jax.contracts.observation import Batch
from vla_jax.training.config import TrainConfig
from vla_jax.training.state import TrainState


def validation_metrics(
    evaluate: Callable[[Any, Any, Batch, int], Mapping[str, jax.Array]],
    config: TrainConfig,
    state: TrainState,
    batches: Iterable[Batch],
) -> dict[str, float]:
    """Returns losses and sampled action errors over the held-out batches; {} without any.

    evaluate: (parameters, statistics, batch, its number) → the sums of `validation_step`, on the devices.

    "validation/…" are of the averaged weights, "validation_live/…" of the others; without averaging there is only
    "validation/…". action_mse and action_mae are over all action dimensions, in recorded units.
    """
    weights = {VALIDATION: state.params}
    if config.ema_decay > 0:
        weights = {VALIDATION: state.ema_params, LIVE_VALIDATION: state.params}
    sums: dict[str, list[Mapping[str, jax.Array]]] = {group: [] for group in weights}
    for index, batch in enumerate(batches):
        for group, params in weights.items():
            sums[group].append(evaluate(params, state.statistics, batch, index))
    return {
        f"{group}/{name}": value
        for group, parts in sums.items()
        if parts
        for name, value in _means(parts).items()
    }


def _means(sums: list[Mapping[str, jax.Array]]) -> dict[str, float]:
    none = np.zeros(())
    totals = {name: sum((np.asarray(part[name], np.float64) for part in sums), none) for name in sums[0]}
    count = totals["samples"]
    return {
        "action_mse": float(totals["squared_error"].mean() / count),
        "action_mae": float(totals["absolute_error"].mean() / count),
        "loss": float(totals["loss"] / count),
    }
