"""Single episodes and samples of a packed data set, as a person would look at them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vla_jax.contracts.specs import ActionSpec
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.dataset.records import ImageRef
from vla_jax.errors import UserError
from vla_jax.reporting.inspection.ages import picture_ages, sensor_ages
from vla_jax.timing import oldest

MAX_COLUMNS = 1200
# A column of the A-scan picture stays empty when its newest row is older than this, and than a few periods.
MAX_COLUMN_AGE_SECONDS = 0.05
MAX_COLUMN_AGE_PERIODS = 3


@dataclass(frozen=True)
class Sample:
    """What the policy is shown at one control tick, and what it should answer.

    tick: row of the data set; seconds: since the episode's first tick.
    pictures: view → where it is; ages_ms: what → age of its features' pictures and its newest sensor row, milliseconds.
    record: number of the features; reuse_step: ticks since they were refreshed; shared_by: ticks that use them.
    window: (t, channels) f32 sensor rows, or None; actions: (horizon, a) f32 in the units of `dataset.spec.actions`.
    """

    tick: int
    seconds: float
    prompt: str
    pictures: dict[str, ImageRef]
    ages_ms: dict[str, float]
    record: int
    reuse_step: int
    shared_by: int
    window: np.ndarray | None
    actions: np.ndarray


@dataclass(frozen=True)
class Timeline:
    """One episode over time, in seconds since its first tick.

    time: (n,) of its control ticks; actions: (n, a); refresh: (n,) whether a tick refreshes its features.
    newest_age, used_age: (n,) ms, of the oldest view at the tick and in its features; sensor_age: (n,) ms.
    row_time, force: (rows,) of the sensor; column_time: (c,), ascan: (c, bins), NaN where nothing was recorded.
    """

    name: str
    time: np.ndarray
    actions: np.ndarray
    action_spec: ActionSpec
    refresh: np.ndarray
    newest_age: np.ndarray
    used_age: np.ndarray
    sensor_age: np.ndarray
    row_time: np.ndarray
    force: np.ndarray
    column_time: np.ndarray
    ascan: np.ndarray


def choose_episodes(dataset: PackedDataset, names: Sequence[str], at_most: int = 3) -> list[int]:
    """Returns the numbers of the episodes with the given names, or without names one of each source and format.

    names: an episode's name, or the end of its path where several share a name.

    Raises:
        UserError: no episode has a name, or several have it.
    """
    if not names:
        firsts: dict[tuple[str, str], int] = {}
        for index, entry in enumerate(dataset.episodes):
            group = (entry.source, entry.format)
            # One with everything shows more than one without.
            if group not in firsts or (entry.has_sensor and not dataset.episodes[firsts[group]].has_sensor):
                firsts[group] = index
        return list(firsts.values())[:at_most]
    return [_find(dataset, name) for name in names]


def _find(dataset: PackedDataset, name: str) -> int:
    parts = Path(name).parts
    found = [
        index
        for index, entry in enumerate(dataset.episodes)
        if Path(dataset.raw_episodes[index]["absolute_path"]).parts[-len(parts) :] == parts
        or entry.name == name
    ]
    if len(found) == 1:
        return found[0]
    if found:
        paths = ", ".join(dataset.episodes[i].path for i in found[:3])
        raise UserError(f"{len(found)} episodes are named {name}; give more of the path: {paths}")
    known = ", ".join(entry.name for entry in dataset.episodes[:5])
    more = ", …" if len(dataset.episodes) > 5 else ""
    raise UserError(f"{dataset.path}: no episode is named {name}; there are {known}{more}")


def choose_samples(dataset: PackedDataset, episode: int, number: int) -> list[int]:
    """Returns up to `number` sample ticks of an episode, spread evenly from its first to its last."""
    ticks = dataset.sample_ticks("all")
    ticks = ticks[dataset.ticks.episode[ticks] == episode]
    places = np.unique(np.linspace(0, len(ticks) - 1, min(number, len(ticks))).round().astype(int))
    return ticks[places].tolist() if len(ticks) else []


def look_at(dataset: PackedDataset, tick: int) -> Sample:
    """Returns the sample at one control tick."""
    ticks = np.array([tick])
    episode = int(dataset.ticks.episode[tick])
    entry = dataset.episodes[episode]
    record = int(dataset.record_index(ticks)[0])
    pictures = {image.view: image for image in dataset.records[record].images} if record >= 0 else {}
    ages = dict(
        zip(dataset.meta.views, (1000 * picture_ages(dataset, ticks, "used")[0]).tolist(), strict=True)
    )
    ages["sensor"] = 1000 * float(sensor_ages(dataset, ticks)[0])
    of_episode = dataset.ticks.record[entry.tick_start : entry.tick_stop]
    before = of_episode[: tick - entry.tick_start + 1][::-1]
    changed = np.flatnonzero(before != record)
    has_sensor = bool(dataset.has_sensor(ticks)[0])
    return Sample(
        tick=int(tick),
        seconds=float(dataset.ticks.time[tick] - dataset.ticks.time[entry.tick_start]),
        prompt=entry.instruction,
        pictures=pictures,
        ages_ms={name: age for name, age in ages.items() if np.isfinite(age)},
        record=record,
        reuse_step=int(changed[0] if len(changed) else len(before)) - 1,
        shared_by=int((of_episode == record).sum()),
        window=dataset.sensor_windows(ticks)[0].astype(np.float32) if has_sensor else None,
        actions=dataset.actions(ticks)[0],
    )


def timeline(dataset: PackedDataset, episode: int) -> Timeline:
    """Returns one episode over time; it must have control ticks.

    The A-scan picture has one stored row per column, the newest at that moment.
    """
    entry = dataset.episodes[episode]
    ticks = np.arange(entry.tick_start, entry.tick_stop)
    start = dataset.ticks.time[entry.tick_start]
    record = dataset.ticks.record[ticks]
    rows = slice(entry.sensor_start, entry.sensor_stop)
    row_time = row_times(dataset, episode) - start
    known = np.flatnonzero(np.isfinite(row_time))
    column_time, ascan = np.empty(0), np.empty((0, dataset.sensor.shape[1] - 1), np.float32)
    if len(known):
        column_time = np.linspace(row_time[known[0]], row_time[known[-1]], min(MAX_COLUMNS, len(known)))
        order = known[np.argsort(row_time[known], kind="stable")]
        newest = order[np.searchsorted(row_time[order], column_time, side="right") - 1]
        ascan = dataset.sensor[rows][newest, 1:].astype(np.float32)
        period = 1 / (entry.sensor_hz or dataset.meta.sensor_hz)
        limit = max(MAX_COLUMN_AGE_SECONDS, MAX_COLUMN_AGE_PERIODS * period)
        ascan[column_time - row_time[newest] > limit] = np.nan
    return Timeline(
        name=entry.name,
        time=dataset.ticks.time[ticks] - start,
        actions=np.array(dataset.ticks.delta[ticks]),
        action_spec=dataset.spec.actions,
        refresh=np.append(record[:1] >= 0, record[1:] != record[:-1]),
        newest_age=oldest(1000 * picture_ages(dataset, ticks, "newest")),
        used_age=oldest(1000 * picture_ages(dataset, ticks, "used")),
        sensor_age=1000 * sensor_ages(dataset, ticks),
        row_time=row_time,
        force=dataset.sensor[rows, 0].astype(np.float32),
        column_time=column_time,
        ascan=ascan,
    )


def row_times(dataset: PackedDataset, episode: int) -> Float[np.ndarray, " rows"]:
    """Returns when an episode's stored sensor rows were taken, unix seconds; NaN for rows that no tick sees.

    Only the times that ticks see are stored: those between are interpolated, those before follow at the sensor's rate.
    """
    entry, ticks = dataset.episodes[episode], dataset.ticks
    here = slice(entry.tick_start, entry.tick_stop)
    begin, end, time = (
        np.asarray(a[here]) for a in (ticks.sensor_begin, ticks.sensor_end, ticks.sensor_time)
    )
    times = np.full(entry.sensor_stop - entry.sensor_start, np.nan)
    for start in np.unique(begin[begin >= 0]).tolist():
        last, first = np.unique(end[begin == start], return_index=True)
        seen, seconds = last - 1, time[begin == start][first]
        stored = np.arange(start, last[-1])
        before = np.minimum(stored - seen[0], 0) / (entry.sensor_hz or dataset.meta.sensor_hz)
        times[stored - entry.sensor_start] = np.interp(stored, seen, seconds) + before
    return times
