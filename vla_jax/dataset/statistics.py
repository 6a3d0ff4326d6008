"""Statistics of a data set: float64 moments merged over episodes, extremes, quantiles.

Sums over a row of depth bins are taken in float32 around the episode's first value and then added in float64, so
that a large offset costs no precision. Quantiles of actions are exact; those of the sensor come from a histogram
of every 8th row with 2⁻⁸ relative bin width.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

QUANTILES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
BLOCK_ROWS = 65
HISTOGRAM_STRIDE = 8
NUM_BINS = 1 << 14
GROUPS = ("force", "ascan")


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of one feature, all (d,) float64. std is the population's; quantiles: probability → (d,)."""

    count: int
    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    quantiles: dict[float, np.ndarray]


@dataclass(frozen=True)
class SensorMoments:
    """What one episode's sensor rows add to the statistics; rows of every array: force, A-scan.

    moments: (2, 5) f64: count, mean, sum of squared deviations, min, max.
    centred: (2, 2) f64: count, sum of squared deviations from the mean of the own block of 65 rows.
    histogram: (2, NUM_BINS) int64, by the leading 14 bits of the float16 value.
    """

    moments: np.ndarray
    centred: np.ndarray
    histogram: np.ndarray

    @classmethod
    def from_bins(
        cls, moments: np.ndarray, centred: np.ndarray, bins: np.ndarray, counts: np.ndarray
    ) -> "SensorMoments":
        """Builds moments from a histogram's occupied bins, numbered through both rows, and their counts."""
        histogram = np.zeros(2 * NUM_BINS, np.int64)
        histogram[bins] = counts
        return cls(moments, centred, histogram.reshape(2, NUM_BINS))

    @classmethod
    def empty(cls) -> "SensorMoments":
        """Returns the moments of no rows."""
        moments = np.zeros((2, 5))
        moments[:, 3], moments[:, 4] = np.inf, -np.inf
        return cls(moments, np.zeros((2, 2)), np.zeros((2, NUM_BINS), np.int64))


class SensorAccumulator:
    """Collects `SensorMoments` over the rows of one episode, given in any pieces."""

    def __init__(self) -> None:
        self._sums: list[np.ndarray] = []
        self._shift: np.ndarray | None = None
        self._extremes = np.array([[np.inf, -np.inf]] * 2)
        self._histogram = np.zeros((2, NUM_BINS), np.int64)
        self._num_rows = 0
        self._num_bins = 0

    def add(self, rows: np.ndarray) -> None:
        """rows: (n, C) float16 or float32, finite."""
        values = rows.astype(np.float32)
        self._num_bins = values.shape[1] - 1
        if self._shift is None:
            self._shift = np.array([values[0, 0], values[0, 1:].mean()], np.float32)
        for group, part in enumerate((values[:, :1], values[:, 1:])):
            self._extremes[group] = (
                min(self._extremes[group, 0], part.min()),
                max(self._extremes[group, 1], part.max()),
            )
        values[:, 0] -= self._shift[0]
        values[:, 1:] -= self._shift[1]
        force, ascan = values[:, 0].astype(np.float64), values[:, 1:]
        self._sums.append(
            np.stack([force, force**2, ascan.sum(axis=1), np.einsum("ij,ij->i", ascan, ascan)], axis=1)
        )
        sampled = rows[-self._num_rows % HISTOGRAM_STRIDE :: HISTOGRAM_STRIDE].astype(np.float16)
        bins = np.ascontiguousarray(sampled).view(np.uint16) >> 2
        self._histogram[0] += np.bincount(bins[:, 0], minlength=NUM_BINS)
        self._histogram[1] += np.bincount(bins[:, 1:].ravel(), minlength=NUM_BINS)
        self._num_rows += len(rows)

    def result(self) -> SensorMoments:
        """Returns the moments of all rows added."""
        if self._shift is None:
            return SensorMoments.empty()
        sums = np.concatenate(self._sums).astype(np.float64)
        starts = np.arange(0, len(sums), BLOCK_ROWS)
        rows_of = np.diff([*starts, len(sums)])
        block_sums = np.add.reduceat(sums, starts, axis=0)
        moments, centred = np.empty((2, 5)), np.empty((2, 2))
        for group, width in enumerate((1, self._num_bins)):
            first, second = block_sums[:, 2 * group], block_sums[:, 2 * group + 1]
            count = rows_of * width
            within = np.maximum(second - first**2 / count, 0.0)
            total, mean = count.sum(), first.sum() / count.sum()
            squares = within.sum() + (count * (first / count - mean) ** 2).sum()
            moments[group] = (total, mean + self._shift[group], squares, *self._extremes[group])
            centred[group] = (total, within.sum())
        return SensorMoments(moments, centred, self._histogram)


def merge_moments(parts: Iterable[SensorMoments]) -> SensorMoments:
    """Adds up episodes exactly as if their rows had been given together (Chan et al. 1979)."""
    merged = SensorMoments.empty()
    moments, centred, histogram = merged.moments, merged.centred, merged.histogram
    for part in parts:
        count, added = moments[:, 0], part.moments[:, 0]
        total = np.maximum(count + added, 1)
        difference = part.moments[:, 1] - moments[:, 1]
        moments[:, 2] += part.moments[:, 2] + difference**2 * count * added / total
        moments[:, 1] += difference * added / total
        moments[:, 0] += added
        moments[:, 3] = np.minimum(moments[:, 3], part.moments[:, 3])
        moments[:, 4] = np.maximum(moments[:, 4], part.moments[:, 4])
        centred += part.centred
        histogram += part.histogram
    return merged


def sensor_statistics(merged: SensorMoments) -> dict[str, FeatureStatistics]:
    """Returns "force", "ascan" (d = 1) and "sensor_centred" (d = 2: force, A-scan); {} when there are no rows."""
    if not merged.moments[0, 0]:
        return {}
    found = {}
    for group, name in enumerate(GROUPS):
        count, mean, squares, low, high = merged.moments[group]
        quantiles = _histogram_quantiles(merged.histogram[group])
        found[name] = FeatureStatistics(
            int(count),
            np.array([mean]),
            np.array([np.sqrt(squares / count)]),
            np.array([low]),
            np.array([high]),
            {q: np.clip(np.array([value]), low, high) for q, value in quantiles.items()},
        )
    count = merged.centred[:, 0]
    found["sensor_centred"] = FeatureStatistics(
        int(count[0]),
        np.zeros(2),
        np.sqrt(merged.centred[:, 1] / count),
        np.full(2, np.nan),
        np.full(2, np.nan),
        {},
    )
    return found


def action_statistics(actions: np.ndarray) -> FeatureStatistics:
    """Returns the statistics of actions (n, a), n >= 1, in float64."""
    actions = np.asarray(actions, np.float64)
    return FeatureStatistics(
        len(actions),
        actions.mean(axis=0),
        actions.std(axis=0),
        actions.min(axis=0),
        actions.max(axis=0),
        dict(zip(QUANTILES, np.quantile(actions, QUANTILES, axis=0), strict=True)),
    )


def write_statistics(path: Path, moments: Iterable[SensorMoments], actions: Sequence[np.ndarray]) -> None:
    """Writes the statistics of the given episodes as JSON: of their sensor, and of "actions" if there are any.

    actions: (n, a) of each episode.
    """
    statistics = sensor_statistics(merge_moments(moments))
    actions = [of_episode for of_episode in actions if len(of_episode)]
    if actions:
        statistics["actions"] = action_statistics(np.concatenate(actions))
    path.write_text(json.dumps(statistics_to_json(statistics), indent=1), encoding="utf-8")


def _histogram_quantiles(histogram: np.ndarray) -> dict[float, float]:
    with np.errstate(invalid="ignore"):
        # The middle of the four float16 values that share their leading 14 bits.
        values = ((np.arange(NUM_BINS, dtype=np.uint16) << 2) | 2).view(np.float16).astype(np.float64)
    used = np.flatnonzero(histogram)
    used = used[np.argsort(values[used], kind="stable")]
    cumulative = np.cumsum(histogram[used])
    return {q: float(values[used[np.searchsorted(cumulative, q * cumulative[-1])]]) for q in QUANTILES}


def statistics_to_json(statistics: Mapping[str, FeatureStatistics]) -> dict[str, Any]:
    """Returns JSON values; numbers keep all their digits, NaN becomes null."""

    def numbers(array: np.ndarray) -> list[float | None]:
        return [float(value) if np.isfinite(value) else None for value in array]

    return {
        name: {
            "count": entry.count,
            "mean": numbers(entry.mean),
            "std": numbers(entry.std),
            "min": numbers(entry.min),
            "max": numbers(entry.max),
            "quantiles": {str(q): numbers(values) for q, values in entry.quantiles.items()},
        }
        for name, entry in statistics.items()
    }


def statistics_from_json(value: Mapping[str, Any]) -> dict[str, FeatureStatistics]:
    """Inverse of `statistics_to_json`."""

    def array(numbers: list[float | None]) -> np.ndarray:
        return np.array([np.nan if number is None else number for number in numbers], np.float64)

    return {
        name: FeatureStatistics(
            int(entry["count"]),
            array(entry["mean"]),
            array(entry["std"]),
            array(entry["min"]),
            array(entry["max"]),
            {float(q): array(numbers) for q, numbers in entry["quantiles"].items()},
        )
        for name, entry in value.items()
    }
