"""Everything that `metrics.json` says of a set of predictions."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vla_jax.dataset.packed_dataset import PackedDataset, Split
from vla_jax.evaluation.baselines import baseline_predictions
from vla_jax.evaluation.drift import Drift, drift_per_episode, summarise_drift
from vla_jax.evaluation.error_intervals import error_intervals
from vla_jax.evaluation.metrics import Metrics, metrics_of_subsets
from vla_jax.evaluation.prediction import Predictions
from vla_jax.policy.checkpoints import read_training
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.storage import config_json
from vla_jax.training.settings import flat

# Metrics whose ratio baseline / policy is reported.
FACTOR_METRICS = (
    "overall_mse",
    "motion_mse",
    "first_motion_mse",
    "overall_mae",
    "first_action_mse",
    "translation_mse",
    "rotation_mse",
)

# Of the training's configuration, what a reader asks for first.
TRAINING_SETTINGS = (
    "recipe",
    "steps",
    "batch_size",
    "seed",
    "optimizer.lr",
    "optimizer.sensor_lr",
    "optimizer.schedule",
    "optimizer.weight_decay",
    "sensor_loss_weight",
    "sensor_dropout",
    "sensor_noise",
    "feature_noise",
    "feature_age",
    "ema_decay",
    "init_from",
)


def judge(predictions: Predictions, dataset: PackedDataset) -> tuple[Metrics, list[Drift]]:
    """Compares predictions and baselines with the recording; returns JSON-ready values, and the policy's drift.

    The policy's errors stand at top level (`metrics_of_subsets`), with "drift". "baselines" has the same for
    zero, mean and previous; "factors" says how many times larger each baseline's error is than the policy's.
    """
    segments, actions = segment_masks(predictions, dataset), dataset.spec.actions
    recorded = np.asarray(dataset.ticks.delta[predictions.tick])
    names = [entry.name for entry in dataset.episodes]

    def of(predicted: Float[np.ndarray, "n h a"]) -> tuple[Metrics, list[Drift]]:
        metrics = metrics_of_subsets(predicted, predictions.target, predictions.has_sensor, segments, actions)
        drifts = drift_per_episode(predicted, recorded, predictions.tick, predictions.episode, actions)
        drift = summarise_drift(drifts)
        for entry in drift["episodes"]:
            entry["episode"] = names[entry["episode"]]
        return {**metrics, "drift": drift}, drifts

    metrics, drifts = of(predictions.predicted)
    baselines = {
        name: of(predicted)[0]
        for name, predicted in baseline_predictions(
            dataset.statistics["actions"].mean, predictions.previous_action, predictions.target.shape[1]
        ).items()
    }
    factors = {
        name: {key: error_factor(baseline[key], metrics[key]) for key in FACTOR_METRICS}
        for name, baseline in baselines.items()
    }
    intervals = error_intervals(predictions.predicted, predictions.target, predictions.episode, actions)
    return {**metrics, "intervals": intervals, "baselines": baselines, "factors": factors}, drifts


def segment_masks(predictions: Predictions, dataset: PackedDataset) -> dict[str, Bool[np.ndarray, " n"]]:
    """Returns which samples lie in each named segment of the evaluated episodes, in order of first appearance."""
    evaluated = (dataset.episodes[index] for index in np.unique(predictions.episode))
    names = dict.fromkeys(segment.name for entry in evaluated for segment in entry.segments)
    return {name: np.asarray(dataset.segment_mask(name, predictions.tick)) for name in names}


def error_factor(baseline: float | None, policy: float | None) -> float | None:
    """Returns baseline / policy; None where either is undefined or the policy makes no error at all."""
    return baseline / policy if baseline is not None and policy else None


def judged_on(
    policy: InsertionPolicy, dataset: PackedDataset, predictions: Predictions, split: Split, seed: int
) -> dict[str, Any]:
    """Returns what was judged, and on what: policy, data and features, for `metrics.json` and the report."""
    config, loaded = policy.config, policy.loaded
    described: dict[str, Any] = {
        "checkpoint": str(loaded.path),
        "step": loaded.metadata.step,
        "model_type": config.head.kind,
        "fusion": config.fusion.strategy,
        "vl_pool": config.vl_pool,
        "z_chunk": "previous" if config.head.needs_previous_chunk else "zero",
        "reads_state": config.state is not None,
        "state_window": config_json.to_plain(config.last_states),
        "told_feature_age": config.age is not None,
        "parameters": policy.num_parameters,
    }
    if policy.sampler is not None:
        described |= {"sampler": policy.sampler, "sampling_steps": policy.sampling_steps, "seed": seed}
    return {
        "policy": described,
        "data": {
            "path": str(dataset.path),
            "split": split,
            "episodes": len(np.unique(predictions.episode)),
            "episodes_with_sensor": len(np.unique(predictions.episode[predictions.has_sensor])),
            "samples": len(predictions.tick),
            "content": dataset.describe()["content"],
            **dataset.describe()["meta"],
        },
        "features": dict(loaded.metadata.identity.features),
        "training": _trained_with(loaded.path),
    }


def _trained_with(checkpoint: Path) -> dict[str, Any]:
    """Returns the settings of the training that made a checkpoint; {} for an imported policy."""
    found = flat((read_training(checkpoint) or {}).get("config", {}))
    return {name: found[name] for name in TRAINING_SETTINGS if name in found}
