"""Feeds a packed data set in batches: a seeded, endless, resumable shuffle for training; one pass for evaluation."""

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from vla_jax.contracts.observation import Batch, Observation, ResidentRows
from vla_jax.contracts.specs import StateWindow
from vla_jax.dataset.feature_ages import AgedFeatures
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset, Split
from vla_jax.errors import UserError

logger = logging.getLogger(__name__)

# An epoch's order is kept while batches of it are made; two epochs meet in one batch.
NUM_KEPT_ORDERS = 3
ENDLESS = 1 << 48


@dataclass(frozen=True)
class ProcessShare:
    """Which rows of every batch this process makes: the index-th of `count` equal runs of rows."""

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> np.ndarray:
        """Returns the numbers of this process's rows in a batch.

        Raises:
            UserError: the batch does not divide over the processes.
        """
        if batch_size < 1 or batch_size % self.count:
            raise UserError(f"a batch of {batch_size} does not divide over {self.count} process(es)")
        size = batch_size // self.count
        return np.arange(self.index * size, (self.index + 1) * size)


def make_batch(
    dataset: PackedDataset,
    features: FeatureTable,
    ticks: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    records: np.ndarray | None = None,
    state_window: StateWindow | None = None,
    resident: Collection[str] = (),
) -> Batch:
    """Returns the samples at tick rows `ticks` (b,), in recorded units; arrays of numpy, features and sensor windows in
    their storage types. Without any sensor in the data set, there is none in the observation either.

    valid: which rows are samples; all by default. records: (b,) whose features each sample sees; by default those of
    its newest refresh (`AgedFeatures` chooses others). state_window: the last states that there are beside the newest;
    without, none. resident: "vl", "sensor" where the devices hold the feature table (`FeatureTable.records`) or the
    stream whole, so that the batch only says which rows of them.
    """
    records = dataset.record_index(ticks) if records is None else records
    rows = ResidentRows()
    vl = vl_mask = sensor = has_sensor = None
    if "vl" in resident:
        rows = replace(rows, vl=features.rows(records))
    else:
        vl, vl_mask = features.gather(records)
    if dataset.spec.sensor is not None:
        has_sensor = dataset.has_sensor(ticks)
        if "sensor" in resident:
            rows = replace(rows, sensor=dataset.sensor_rows(ticks))
        else:
            sensor = dataset.sensor_windows(ticks)
    state = np.asarray(dataset.ticks.pose[ticks], np.float32) if dataset.spec.state else None
    window = window_mask = None
    if state_window is not None:
        window, window_mask = dataset.state_windows(ticks, state_window)
    age = None
    if dataset.spec.alignment == "timestamp":  # Paired by position, pictures drift against the ticks.
        age = np.maximum(dataset.ticks.time[ticks] - dataset.record_time[records], 0.0).astype(np.float32)
    actions = dataset.actions(ticks)
    previous = np.repeat(dataset.previous_action(ticks)[:, None], actions.shape[1], axis=1)
    return Batch(
        observation=Observation(
            vl,
            vl_mask,
            sensor,
            has_sensor,
            state,
            state_window=window,
            state_window_mask=window_mask,
            feature_age=age,
            previous_chunk=previous,
        ),
        actions=actions,
        confidence=dataset.confidence(ticks),
        tick=np.asarray(ticks, np.int64),
        valid=np.ones(len(ticks), bool) if valid is None else valid,
        resident=rows,
        columns=dataset.batch_columns(ticks),
    )


def sequential_batches(
    dataset: PackedDataset,
    features: FeatureTable,
    split: Split | np.ndarray,
    batch_size: int,
    *,
    aged: AgedFeatures | None = None,
    state_window: StateWindow | None = None,
    share: ProcessShare = ProcessShare(),
    resident: Collection[str] = (),
) -> Iterator[Batch]:
    """Yields all samples of a split that have features once, in order; or the samples at the given ticks (n,).

    The last batch is filled up with copies marked not `valid`. aged: draws how old their features are, of seed and
    tick; without, they are the newest. state_window, share, resident: see `BatchLoader` and `make_batch`.
    """
    ticks = features.sample_ticks(split) if isinstance(split, str) else split
    mine = share.rows(batch_size)
    for start in range(0, len(ticks), batch_size):
        rows = start + mine
        valid = rows < len(ticks)
        shown = ticks[np.minimum(rows, len(ticks) - 1)]
        records = None if aged is None else aged.records(shown, shown)
        yield make_batch(
            dataset,
            features,
            shown,
            valid,
            records=records,
            state_window=state_window,
            resident=resident,
        )


class SampleOrder:
    """The endless order of training samples, a function of (seed, position) alone.

    Each epoch is a permutation of all samples. With weights it is a systematic sample of the same length in which
    a sample is expected in proportion to its weight, then permuted.

    ticks: (n,) rows to choose from; weights: (n,) positive, or None.
    """

    def __init__(self, ticks: np.ndarray, seed: int, weights: np.ndarray | None = None) -> None:
        self._ticks = ticks
        self._seed = seed
        self._cumulative = None
        if weights is not None and len(weights) and (weights != weights[0]).any():
            self._cumulative = np.cumsum(weights) / np.sum(weights) * len(weights)
        self._orders: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._ticks)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the order (JSON values): how many samples, which ones with what weights, and the seed."""
        digest = hashlib.sha256(np.ascontiguousarray(self._ticks, "<i8").tobytes())
        if self._cumulative is not None:
            digest.update(self._cumulative.astype("<f8").tobytes())
        return {"num_samples": len(self._ticks), "samples": digest.hexdigest()[:16], "seed": self._seed}

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Returns the tick rows at positions (n,) of the endless order."""
        epochs, offsets = np.divmod(positions, len(self._ticks))
        rows = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            rows[here] = self._epoch(epoch)[offsets[here]]
        return rows

    def _epoch(self, epoch: int) -> np.ndarray:
        with self._lock:
            order = self._orders.get(epoch)
            if order is None:
                order = self._orders[epoch] = self._make_epoch(epoch)
                while len(self._orders) > NUM_KEPT_ORDERS:
                    self._orders.popitem(last=False)
            return order

    def _make_epoch(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng([self._seed, epoch])
        chosen = self._ticks
        if self._cumulative is not None:
            points = generator.random() + np.arange(len(chosen))
            rows = np.searchsorted(self._cumulative, points, side="right")
            chosen = chosen[np.minimum(rows, len(chosen) - 1)]
        return generator.permutation(chosen)


class _BatchSource:
    """Random access to batches by number, for grain."""

    def __init__(self, loader: "BatchLoader") -> None:
        self._loader = loader

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Batch:
        return self._loader.batch(index)

    def __repr__(self) -> str:
        return f"batches of {self._loader.dataset.path}"


class BatchLoader:
    """Endless shuffled batches of one split, read ahead by grain's threads.

    batch_size: over all processes; each process makes its `share` of the rows.
    aged: draws how old a sample's features are, of its position in the endless order; without, they are the newest.
    state_window, resident: which states batches have, and what they leave to arrays on the devices; see `make_batch`.
    source_weights: EpisodeEntry.source → how often its samples are drawn, relative to the others (default 1);
        without it the data set's own weights hold (`EpisodeEntry.weight`).

    Raises:
        UserError: the split has no samples with features; the batch does not divide; a weight names no source or is
            not positive.
    """

    def __init__(
        self,
        dataset: PackedDataset,
        features: FeatureTable,
        *,
        split: Split,
        batch_size: int,
        seed: int,
        aged: AgedFeatures | None = None,
        state_window: StateWindow | None = None,
        share: ProcessShare = ProcessShare(),
        resident: Collection[str] = (),
        num_threads: int = 2,
        prefetch: int = 4,
        source_weights: Mapping[str, float] | None = None,
    ) -> None:
        self._rows = share.rows(batch_size)
        ticks = features.sample_ticks(split)
        if not len(ticks):
            without = " with features" if features.num_missing else ""
            raise UserError(f"{dataset.path}: the {split} split has no samples{without}")
        self.dataset = dataset
        self.features = features
        self.split: Split = split
        self.batch_size = batch_size
        self.seed = seed
        self.aged = aged
        self.state_window = state_window
        self.resident = frozenset(resident)
        self.num_threads = num_threads
        self.prefetch = prefetch
        self.order = SampleOrder(ticks, seed, _sample_weights(dataset, ticks, source_weights))

    def batch(self, index: int, *, resident: Collection[str] | None = None) -> Batch:
        """Returns this process's share of batch number `index`. resident: in place of the loader's."""
        positions = index * self.batch_size + self._rows
        ticks = self.order.at(positions)
        records = None if self.aged is None else self.aged.records(ticks, positions)
        resident = self.resident if resident is None else resident
        return make_batch(
            self.dataset,
            self.features,
            ticks,
            records=records,
            state_window=self.state_window,
            resident=resident,
        )

    def __iter__(self) -> "BatchIterator":
        return BatchIterator(self)


class BatchIterator(Iterator[Batch]):
    """Iterates over a `BatchLoader`; its position can be saved and restored exactly. Close it when done."""

    def __init__(self, loader: BatchLoader) -> None:
        import grain

        self._loader = loader
        options = grain.ReadOptions(num_threads=loader.num_threads, prefetch_buffer_size=loader.prefetch)
        self._iterator = iter(grain.MapDataset.source(_BatchSource(loader)).to_iter_dataset(options))

    def __next__(self) -> Batch:
        return next(self._iterator)

    @property
    def index(self) -> int:
        """The number of the next batch."""
        return int(self._iterator.get_state()["next_index"])

    def get_state(self) -> dict[str, int]:
        """Returns the position (JSON values): the samples consumed so far by all processes."""
        return {"next_sample": self.index * self._loader.batch_size, **self._loader.order.identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues where `get_state` was called; after a change of the batch size, at the batch that holds it."""
        for name, now in self._loader.order.identity.items():
            # States saved by earlier versions do not tell the samples apart.
            if state.get(name, now) != now:
                logger.warning(
                    "the data order has changed since it was saved (%s %s, now %s): samples of the epoch in progress "
                    "may come twice or not at all",
                    name,
                    state[name],
                    now,
                )
        self._iterator.set_state({"next_index": int(state["next_sample"]) // self._loader.batch_size})

    def close(self) -> None:
        """Ends the reading threads."""
        self._iterator.close()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sample_weights(
    dataset: PackedDataset, ticks: np.ndarray, source_weights: Mapping[str, float] | None
) -> np.ndarray | None:
    if not source_weights:
        weights = np.array([entry.weight for entry in dataset.episodes], np.float64)
        return weights[dataset.ticks.episode[ticks]]
    sources = [entry.source for entry in dataset.episodes]
    unknown = sorted(set(source_weights) - set(sources))
    if unknown:
        raise UserError(f"no source named {', '.join(unknown)}; there are: {', '.join(sorted(set(sources)))}")
    if not all(np.isfinite(weight) and weight > 0 for weight in source_weights.values()):
        raise UserError("source weights must be positive numbers")
    weights = np.array([source_weights.get(source, 1.0) for source in sources], np.float64)
    return weights[dataset.ticks.episode[ticks]]
