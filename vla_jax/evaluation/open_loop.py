"""Judging a policy on recorded episodes: predictions and everything that is measured of them."""

import importlib.metadata
from dataclasses import dataclass
from typing import Any

import jax

from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset, Split
from vla_jax.errors import UserError
from vla_jax.evaluation.drift import Drift
from vla_jax.evaluation.errors_by_age import errors_by_age
from vla_jax.evaluation.judgement import judge, judged_on
from vla_jax.evaluation.prediction import Predictions, predict_split
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.policy.latency import measure_latency

PACKAGES = ("vla-jax", "jax", "jaxlib", "flax", "numpy")


@dataclass(frozen=True)
class Evaluation:
    """A judged policy. metrics: the content of `metrics.json`; drifts: of the policy, per stretch of ticks."""

    metrics: dict[str, Any]
    predictions: Predictions
    drifts: list[Drift]


def evaluate(
    policy: InsertionPolicy,
    dataset: PackedDataset,
    features: FeatureTable,
    split: Split,
    *,
    batch_size: int,
    seed: int = 0,
) -> Evaluation:
    """Predicts every sample of a split ("train", "val" or "all") and compares with recording and baselines.

    seed: of a diffusion policy's noise.

    Raises:
        UserError: the split has no samples with features.
    """
    num_samples = len(features.sample_ticks(split))
    if not num_samples:
        without = " with features" if features.num_missing else ""
        raise UserError(
            f"{dataset.path} has no samples{without} in split {split!r}; use --split all, or more episodes"
        )
    predictions = predict_split(policy, dataset, features, split, batch_size=batch_size, seed=seed)
    judged, drifts = judge(predictions, dataset)
    by_age = errors_by_age(policy, dataset, features, split, batch_size=batch_size, seed=seed)
    conditions = judged_on(policy, dataset, predictions, split, seed)
    conditions["data"]["samples_without_features"] = len(dataset.sample_ticks(split)) - num_samples
    device = jax.devices()[0]
    metrics = {
        **judged,
        "by_feature_age": by_age,
        "latency": {**measure_latency(policy), "device": device.device_kind},
        **conditions,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    return Evaluation(metrics, predictions, drifts)
