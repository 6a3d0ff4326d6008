"""Open-loop errors by how old the features are: what a backbone that takes its time costs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vla_jax.dataset.feature_ages import AgedFeatures
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset, Split
from vla_jax.evaluation.metrics import action_metrics
from vla_jax.evaluation.prediction import predict_ticks
from vla_jax.policy.insertion_policy import InsertionPolicy

AGES_S = (0.0, 0.4, 0.8, 1.2, 1.6, 2.0)
MAX_SAMPLES = 512
MIN_SHARE = 0.25
"""Of the samples, that must have a history as long as an age."""
METRICS = ("overall_mse", "motion_mse", "translation_mse", "rotation_mse", "first_motion_mse")


def errors_by_age(
    policy: InsertionPolicy,
    dataset: PackedDataset,
    features: FeatureTable,
    split: Split,
    *,
    batch_size: int,
    seed: int = 0,
    ages_s: Sequence[float] = AGES_S,
) -> list[dict[str, Any]]:
    """Returns the errors at each age, on the same samples: those before which pictures go back far enough, evenly
    spaced ones where they are many. Ages for which few samples would be left are left out; [] where fewer than two
    are left, or pictures are not paired by time.

    Entries: age_s as asked for, feature_age_s (the mean of what there was), samples, and `METRICS`.
    """
    ticks = features.sample_ticks(split)
    if dataset.spec.alignment != "timestamp" or not len(ticks):
        return []
    history = _history(dataset, features, ticks)
    ages_s = [age_s for age_s in ages_s if (history >= age_s).mean() >= MIN_SHARE]
    if len(ages_s) < 2:
        return []
    ticks = ticks[history >= max(ages_s)]
    if len(ticks) > MAX_SAMPLES:
        ticks = ticks[np.linspace(0, len(ticks) - 1, MAX_SAMPLES).round().astype(int)]
    found = []
    for age_s in ages_s:
        aged = AgedFeatures(dataset, features, (age_s,))
        shown = dataset.ticks.time[ticks] - dataset.record_time[aged.records(ticks, ticks)]
        predictions = predict_ticks(
            policy,
            dataset,
            features,
            ticks,
            batch_size=batch_size,
            seed=seed,
            aged=aged,
            what=f"at {age_s:g} s",
        )
        errors = action_metrics(predictions.predicted, predictions.target, dataset.spec.actions)
        entry = {"age_s": age_s, "feature_age_s": float(shown.mean()), "samples": len(ticks)}
        found.append(entry | {name: errors[name] for name in METRICS})
    return found


def _history(
    dataset: PackedDataset, features: FeatureTable, ticks: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Returns the largest age that each tick's features can have, seconds."""
    held = features.records
    first = np.searchsorted(dataset.array("instant_episode")[held], dataset.ticks.episode[ticks])
    return dataset.ticks.time[ticks] - dataset.record_time[held][first]
