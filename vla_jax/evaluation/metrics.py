"""Errors of predicted action chunks against recorded ones, in physical units, as JSON-ready values.

All sums are taken in float64. A value that is not defined, such as the correlation of a constant dimension or any
mean over no samples, is None (null in JSON), never NaN.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

ACTION_NAMES = ("dx", "dy", "dz", "da", "db", "dr", "gripper")
ACTION_UNITS = ("mm", "mm", "mm", "deg", "deg", "deg", "")
TRANSLATION, ROTATION, MOTION = slice(0, 3), slice(3, 6), slice(0, 6)
GRIPPER = 6

# Below this standard deviation a dimension counts as constant; the threshold of the reference's correlations.
CONSTANT_STD = 1e-6

Metrics = dict[str, Any]


def action_metrics(predicted: Float[np.ndarray, "n h a"], target: Float[np.ndarray, "n h a"]) -> Metrics:
    """Computes the errors of action chunks; a = 7, mm for dims 0–2, degrees for 3–5, gripper last.

    Keys named as in the reference: overall_mse, overall_mae (all dims), first_action_mse, full_horizon_mse,
    mse_per_dim, mae_per_dim [a], correlations [a] (Pearson, first action of each chunk), action_names.

    Further ones: samples; motion_mse, motion_mae, first_motion_mse (the six motion dims: a constant gripper is
    trivial for whoever knows it and costs the zero baseline 1/7); translation_mse (mm²), rotation_mse (deg²);
    first_mse_per_dim, r2_per_dim (whole horizon), first_r2_per_dim [a]; mse_per_horizon [h],
    translation_rmse_per_horizon (mm, length of the error vector) and rotation_rmse_per_horizon (deg, likewise) [h].
    """
    if predicted.shape != target.shape or predicted.ndim != 3:
        raise ValueError(f"predicted {predicted.shape} and target {target.shape} must both be [n, h, a]")
    predicted, target = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    error = predicted - target
    squared, absolute = np.square(error), np.abs(error)
    first = slice(0, 1)
    return {
        "samples": len(predicted),
        "overall_mse": _mean(squared),
        "overall_mae": _mean(absolute),
        "first_action_mse": _mean(squared[:, first]),
        "full_horizon_mse": _mean(squared),
        "motion_mse": _mean(squared[..., MOTION]),
        "motion_mae": _mean(absolute[..., MOTION]),
        "first_motion_mse": _mean(squared[:, first, MOTION]),
        "translation_mse": _mean(squared[..., TRANSLATION]),
        "rotation_mse": _mean(squared[..., ROTATION]),
        "mse_per_dim": _means(squared, axis=(0, 1)),
        "mae_per_dim": _means(absolute, axis=(0, 1)),
        "first_mse_per_dim": _means(squared[:, first], axis=(0, 1)),
        "correlations": correlations(predicted[:, 0], target[:, 0]),
        "r2_per_dim": r2_per_dim(predicted, target),
        "first_r2_per_dim": r2_per_dim(predicted[:, first], target[:, first]),
        "mse_per_horizon": _means(squared, axis=(0, 2)),
        "translation_rmse_per_horizon": _root(_means(squared[..., TRANSLATION].sum(-1), axis=0)),
        "rotation_rmse_per_horizon": _root(_means(squared[..., ROTATION].sum(-1), axis=0)),
        "action_names": list(ACTION_NAMES[: predicted.shape[-1]]),
    }


def correlations(predicted: Float[np.ndarray, "n a"], target: Float[np.ndarray, "n a"]) -> list[float | None]:
    """Returns Pearson's correlation per dimension; None where either side is constant."""
    result: list[float | None] = []
    for x, y in zip(np.asarray(predicted, np.float64).T, np.asarray(target, np.float64).T, strict=True):
        if not _varies(x) or not _varies(y):
            result.append(None)
            continue
        x, y = x - x.mean(), y - y.mean()
        result.append(float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0)))
    return result


def r2_per_dim(
    predicted: Float[np.ndarray, "n h a"], target: Float[np.ndarray, "n h a"]
) -> list[float | None]:
    """Returns 1 − SSE/SST per dimension over samples and horizon; None where the target is constant.

    SST is about the mean of the given targets, so a subset is judged against its own best constant.
    """
    result: list[float | None] = []
    for dim in range(target.shape[-1]):
        x, y = (np.asarray(values[..., dim], np.float64).ravel() for values in (predicted, target))
        if _varies(y):
            result.append(float(1.0 - np.square(x - y).sum() / np.square(y - y.mean()).sum()))
        else:
            result.append(None)
    return result


def metrics_of_subsets(
    predicted: Float[np.ndarray, "n h a"],
    target: Float[np.ndarray, "n h a"],
    has_sensor: Bool[np.ndarray, " n"],
    segments: Mapping[str, Bool[np.ndarray, " n"]],
) -> Metrics:
    """Computes `action_metrics` of all samples (top level), and of these parts of them.

    "subsets": {"with_sensor", "without_sensor"}; "segments": {name: {"all", "with_sensor"}} for the named stretches.
    """

    def of(mask: Bool[np.ndarray, " n"]) -> Metrics:
        return action_metrics(predicted[mask], target[mask])

    return {
        **action_metrics(predicted, target),
        "subsets": {"with_sensor": of(has_sensor), "without_sensor": of(~has_sensor)},
        "segments": {
            name: {"all": of(mask), "with_sensor": of(mask & has_sensor)} for name, mask in segments.items()
        },
    }


def _varies(values: np.ndarray) -> bool:
    return len(values) > 1 and float(values.std()) > CONSTANT_STD


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


def _means(values: np.ndarray, axis: int | tuple[int, ...]) -> list[float | None]:
    if not values.size:
        axes = (axis,) if isinstance(axis, int) else axis
        return [None] * int(np.prod([size for i, size in enumerate(values.shape) if i not in axes]))
    return [float(value) for value in values.mean(axis=axis)]


def _root(values: list[float | None]) -> list[float | None]:
    return [None if value is None else value**0.5 for value in values]
