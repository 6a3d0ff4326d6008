"""Errors of predicted action chunks against recorded ones, in recorded units, as JSON-ready values.

All sums are taken in float64. A value that is not defined, such as the correlation of a constant dimension or any
mean over no samples, is None (null in JSON), never NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vla_jax.contracts.specs import ActionSpec

# Below this standard deviation a dimension counts as constant; the threshold of the reference's correlations.
CONSTANT_STD = 1e-6

Metrics = dict[str, Any]


@dataclass(frozen=True)
class MotionDims:
    """Which dimensions of an action move the arm, as indices into the last axis. A group without any has no errors."""

    translation: slice | list[int]
    """In mm."""
    rotation: slice | list[int]
    """In degrees."""
    motion: slice | list[int]
    """Both."""

    @classmethod
    def of(cls, actions: ActionSpec) -> "MotionDims":
        """Finds them by their units."""
        translation, rotation = actions.dims("mm"), actions.dims("deg")
        return cls(*map(_index, (translation, rotation, sorted(translation + rotation))))


def action_metrics(
    predicted: Float[np.ndarray, "n h a"], target: Float[np.ndarray, "n h a"], actions: ActionSpec
) -> Metrics:
    """Computes the errors of action chunks in the units of `actions`.

    Keys named as in the reference: overall_mse, overall_mae (all dims), first_action_mse, full_horizon_mse,
    mse_per_dim, mae_per_dim [a], correlations [a] (Pearson, first action of each chunk), action_names.

    Further ones: samples; motion_mse, motion_mae, first_motion_mse (the dims in mm and degrees: a constant gripper is
    trivial for whoever knows it and costs the zero baseline 1/7); translation_mse (mm²), rotation_mse (deg²);
    first_mse_per_dim, r2_per_dim (whole horizon), first_r2_per_dim [a]; mse_per_horizon [h],
    translation_rmse_per_horizon (mm, length of the error vector) and rotation_rmse_per_horizon (deg, likewise) [h].
    """
    if predicted.shape != target.shape or predicted.ndim != 3 or predicted.shape[-1] != actions.size:
        raise ValueError(
            f"predicted {predicted.shape} and target {target.shape} must both be [n, h, {actions.size}]"
        )
    predicted, target = np.asarray(predicted, np.float64), np.asarray(target, np.float64)
    error = predicted - target
    squared, absolute = np.square(error), np.abs(error)
    first, dims = slice(0, 1), MotionDims.of(actions)
    return {
        "samples": len(predicted),
        "overall_mse": _mean(squared),
        "overall_mae": _mean(absolute),
        "first_action_mse": _mean(squared[:, first]),
        "full_horizon_mse": _mean(squared),
        "motion_mse": _mean(squared[..., dims.motion]),
        "motion_mae": _mean(absolute[..., dims.motion]),
        "first_motion_mse": _mean(squared[:, first][..., dims.motion]),
        "translation_mse": _mean(squared[..., dims.translation]),
        "rotation_mse": _mean(squared[..., dims.rotation]),
        "mse_per_dim": _means(squared, axis=(0, 1)),
        "mae_per_dim": _means(absolute, axis=(0, 1)),
        "first_mse_per_dim": _means(squared[:, first], axis=(0, 1)),
        "correlations": correlations(predicted[:, 0], target[:, 0]),
        "r2_per_dim": r2_per_dim(predicted, target),
        "first_r2_per_dim": r2_per_dim(predicted[:, first], target[:, first]),
        "mse_per_horizon": _means(squared, axis=(0, 2)),
        "translation_rmse_per_horizon": _lengths(squared[..., dims.translation]),
        "rotation_rmse_per_horizon": _lengths(squared[..., dims.rotation]),
        "action_names": list(actions.names),
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
    actions: ActionSpec,
) -> Metrics:
    """Computes `action_metrics` of all samples (top level), and of these parts of them.

    "subsets": {"with_sensor", "without_sensor"}; "segments": {name: {"all", "with_sensor"}} for the named stretches.
    """

    def of(mask: Bool[np.ndarray, " n"]) -> Metrics:
        return action_metrics(predicted[mask], target[mask], actions)

    return {
        **action_metrics(predicted, target, actions),
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


def _lengths(squared: np.ndarray) -> list[float | None]:
    """Root mean square length, at each step of the horizon, of error vectors whose squared components [n, h, d] are."""
    if not squared.size:
        return [None] * squared.shape[1]
    return [None if value is None else value**0.5 for value in _means(squared.sum(-1), axis=0)]


def _index(dims: Sequence[int]) -> slice | list[int]:
    """Neighbouring dimensions as a slice, which makes a view: sums over it are taken in the order they lie in."""
    if dims and list(dims) == list(range(dims[0], dims[-1] + 1)):
        return slice(dims[0], dims[-1] + 1)
    return list(dims)
