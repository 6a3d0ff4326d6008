"""What a packed data set holds: counts, hours, rates, what is missing, and the ages of what its samples see."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.reporting.inspection.ages import picture_ages, sensor_ages, view_spread
from vla_jax.timing import TIME_RESOLUTION


@dataclass(frozen=True)
class SourceSummary:
    """The episodes of one source in one format.

    episodes: their numbers; hours: of control ticks; weight: of sampling, lowest and highest.
    camera_hz: view → measured rate; sensor_hz: measured; pose_hz: measured; None where there is nothing to measure.
    missing: modality ("images", "sensor", "poses", or a view) → number of episodes without it.
    """

    source: str
    format: str
    episodes: tuple[int, ...]
    held_out: int
    hours: float
    ticks: int
    samples: int
    prompts: tuple[str, ...]
    weight: tuple[float, float]
    camera_hz: dict[str, float]
    sensor_hz: float | None
    pose_hz: float | None
    missing: dict[str, int]


@dataclass(frozen=True)
class Offset:
    """How old one thing is at the samples' ticks, in milliseconds; period: of its recording, None where unknown.

    later: share of the samples that see one from after their tick; only the reference's pairing by index has such.
    """

    what: str
    median_ms: float
    max_ms: float
    period_ms: float | None
    later: float


def summarise_sources(dataset: PackedDataset) -> list[SourceSummary]:
    """Returns a summary per source and format, in the order of their first episodes."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, entry in enumerate(dataset.episodes):
        groups.setdefault((entry.source, entry.format), []).append(index)
    samples = np.bincount(dataset.ticks.episode[dataset.sample_ticks("all")], minlength=len(dataset.episodes))
    return [_summary(dataset, *group, members, samples) for group, members in groups.items()]


def _summary(
    dataset: PackedDataset, source: str, kind: str, members: Sequence[int], samples: np.ndarray
) -> SourceSummary:
    entries = [dataset.episodes[i] for i in members]
    ticks = sum(entry.tick_stop - entry.tick_start for entry in entries)
    weights = [entry.weight for entry in entries]
    return SourceSummary(
        source=source,
        format=kind,
        episodes=tuple(members),
        held_out=sum(entry.split == "val" for entry in entries),
        hours=ticks / dataset.meta.action_hz / 3600,
        ticks=ticks,
        samples=int(samples[list(members)].sum()),
        prompts=tuple(dict.fromkeys(entry.instruction for entry in entries)),
        weight=(min(weights), max(weights)),
        camera_hz=camera_rates(dataset, members),
        sensor_hz=_median([sensor_rate(dataset, i) for i in members]),
        pose_hz=_median([entry.pose_hz for entry in entries]),
        missing=_missing(dataset, members),
    )


def camera_rates(dataset: PackedDataset, episodes: Sequence[int]) -> dict[str, float]:
    """Returns the measured rate of each view in Hz, from the median period over the given episodes."""
    periods: dict[str, list[np.ndarray]] = {}
    for episode in episodes:
        for view, times in dataset.image_times(episode).items():
            periods.setdefault(view, []).append(np.diff(times))
    joined = {view: np.concatenate(parts) for view, parts in sorted(periods.items())}
    return {view: float(1 / np.median(steps)) for view, steps in joined.items() if len(steps)}


def sensor_rate(dataset: PackedDataset, episode: int) -> float | None:
    """Returns the rate in Hz at which an episode's sensor rows came, as its ticks saw them; None if there are too few.

    Ticks of different stretches of the recording are not compared.
    """
    entry, ticks = dataset.episodes[episode], dataset.ticks
    rows = slice(entry.tick_start, entry.tick_stop)
    begin, end, time = ticks.sensor_begin[rows], ticks.sensor_end[rows], ticks.sensor_time[rows]
    together = (end[1:] > end[:-1]) & (begin[1:] == begin[:-1]) & (end[:-1] >= 0)
    seconds = np.diff(time)[together].sum()
    return float(np.diff(end)[together].sum() / seconds) if seconds > 0 else None


def _missing(dataset: PackedDataset, members: Sequence[int]) -> dict[str, int]:
    entries = [dataset.episodes[i] for i in members]
    counts = {
        "images": sum(not entry.has_images for entry in entries),
        "sensor": sum(not entry.has_sensor for entry in entries),
        "poses": sum(entry.tick_start == entry.tick_stop for entry in entries),
    }
    with_images = [dataset.image_times(i) for i in members if dataset.episodes[i].has_images]
    for view in dataset.meta.views:
        counts[view] = sum(view not in times for times in with_images)
    return {name: count for name, count in counts.items() if count}


def time_offsets(dataset: PackedDataset, ticks: np.ndarray) -> list[Offset]:
    """Returns the ages of pictures and sensor at the given ticks; what none of them sees is left out."""
    ticks = np.asarray(ticks)
    episodes = np.unique(dataset.ticks.episode[ticks]).tolist()
    rates = camera_rates(dataset, episodes)
    sensor_hz = _median([sensor_rate(dataset, i) for i in episodes])
    found = []
    for which, label in (("newest", "newest picture"), ("used", "picture of the features")):
        ages = picture_ages(dataset, ticks, which)
        for column, view in enumerate(dataset.meta.views):
            found.append(_offset(f"{label}, {view}", ages[:, column], rates.get(view)))
    found.append(_offset("views apart", view_spread(dataset, ticks), None))
    found.append(_offset("newest sensor row", sensor_ages(dataset, ticks), sensor_hz))
    return [offset for offset in found if offset is not None]


def _offset(what: str, seconds: np.ndarray, rate: float | None) -> Offset | None:
    seconds = seconds[np.isfinite(seconds)]
    if not len(seconds):
        return None
    return Offset(
        what,
        1000 * float(np.median(seconds)),
        1000 * float(seconds.max()),
        None if rate is None else 1000 / rate,
        float((seconds < -2 * TIME_RESOLUTION).mean()),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
