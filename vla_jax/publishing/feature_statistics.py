"""Statistics of features, as LeRobot keeps them: of each episode, and of all together."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
MAX_PICTURES = 100
PICTURE_SIDE = 150

FeatureStats = dict[str, np.ndarray]


def vector_statistics(values: np.ndarray) -> FeatureStats:
    """Returns min, max, mean, std and quantiles (d,) and count (1,) of rows (n, d)."""
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    found = {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "count": np.array([len(values)]),
    }
    return found | {name: np.quantile(values, q, axis=0) for name, q in QUANTILES.items()}


def picture_statistics(pictures: Sequence[np.ndarray]) -> FeatureStats:
    """Returns the statistics of the colours, (3, 1, 1) from 0 to 1, of pictures (h, w, 3) uint8; count: of pictures."""
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures]) / 255.0
    found = vector_statistics(pixels)
    found = {name: value.reshape(3, 1, 1) for name, value in found.items() if name != "count"}
    return found | {"count": np.array([len(pictures)])}


def sampled(num_rows: int) -> np.ndarray:
    """Returns which rows' pictures are counted: at most `MAX_PICTURES`, spread evenly."""
    return np.unique(np.linspace(0, num_rows - 1, min(num_rows, MAX_PICTURES)).round().astype(int))


def shrunk(picture: np.ndarray) -> np.ndarray:
    """Returns every n-th pixel, so that about `PICTURE_SIDE` are left of the longer side."""
    step = max(1, max(picture.shape[:2]) // PICTURE_SIDE)
    return picture[::step, ::step]


def joined(parts: Sequence[Mapping[str, Any]]) -> FeatureStats:
    """Returns the statistics of all episodes from those of each. Quantiles are the episodes', weighted by count."""
    counts = np.array([float(np.asarray(part["count"])[0]) for part in parts])
    arrays = {name: np.stack([np.asarray(part[name], np.float64) for part in parts]) for name in parts[0]}
    weights = (counts / counts.sum()).reshape(-1, *(1,) * (arrays["mean"].ndim - 1))
    mean = (weights * arrays["mean"]).sum(axis=0)
    variance = (weights * (arrays["std"] ** 2 + (arrays["mean"] - mean) ** 2)).sum(axis=0)
    found = {
        "min": arrays["min"].min(axis=0),
        "max": arrays["max"].max(axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": np.array([int(counts.sum())]),
    }
    return found | {name: (weights * arrays[name]).sum(axis=0) for name in QUANTILES}
