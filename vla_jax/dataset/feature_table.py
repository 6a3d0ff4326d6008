"""Joins a packed data set with a feature cache: the vision-language features of every record it needs."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from feature_cache.keys import record_key
from feature_cache.store import FeatureStore
from vla_jax.contracts.provenance import Provenance
from vla_jax.contracts.slots import SlotLayout
from vla_jax.contracts.specs import FeatureSpec
from vla_jax.dataset.packed_dataset import PackedDataset, Split
from vla_jax.errors import UserError

# Features up to this size are held in memory as one array; larger ones are gathered from the shards' maps.
MAX_TABLE_BYTES = 256 << 20
NUM_LISTED = 3


class FeatureTable:
    """Features by record index, with one slot layout for the whole data set. Build it with `open`.

    Attributes:
        num_slots, width: S and V; `vla_jax.contracts.slots` says what the slots are.
        spec: what the features are, and the slots they fill.
        provenance: what made the features (JSON values); name: its directory in the cache.
        num_required, num_missing: records that the data set's samples need, and those of them without features
            (0 unless the table was opened with `allow_missing`).
    """

    def __init__(self, dataset: PackedDataset, store: FeatureStore, name: str, positions: np.ndarray) -> None:
        provenance: Provenance = store.provenance
        self.name = name
        self.provenance = {**vars(provenance), "digest": provenance.digest()}
        self.width = store.width
        self.dtype = store.dtype
        required = dataset.required_records()
        self.num_required = len(required)
        self.num_missing = int((positions[required] < 0).sum())
        self._dataset = dataset
        self._store = store
        self._positions = positions
        self._views = dataset.record_views
        known = positions >= 0
        slots = store.num_slots(positions[known])
        self._layout = SlotLayout.of(provenance, len(dataset.meta.views), int(slots.max(initial=1)))
        if self._layout.cells:
            expected = self._layout.lengths(self._views[known])
            if (slots != expected).any():
                raise UserError(
                    f"{store.directory}: a record has {slots[slots != expected][0]} slots where its views give "
                    f"{expected[slots != expected][0]}; export again into a new cache"
                )
        self.num_slots = self._layout.num_slots
        self.spec = FeatureSpec(self.num_slots, self.width, provenance)
        self._records = np.flatnonzero(known)
        self._row_of = np.full(len(positions), -1, np.int64)
        self._row_of[self._records] = np.arange(len(self._records))
        self._table: np.ndarray | None = None
        if len(self._records) * self.num_slots * self.width * self.dtype.itemsize <= MAX_TABLE_BYTES:
            # One more row of masked zeros stands for "no record".
            self._table, self._table_mask = self._read(np.append(self._records, -1))

    @classmethod
    def open(
        cls,
        dataset: PackedDataset,
        cache_dir: str | Path,
        *,
        features: str | None = None,
        allow_missing: bool = False,
    ) -> "FeatureTable":
        """Finds the features that `dataset` needs in a cache.

        features: beginning of a provenance's name; needed only where several would do.
        allow_missing: where no provenance holds everything, take one that holds something; `sample_ticks` then
            leaves out the samples without features.

        Raises:
            UserError: no such cache; no records are needed; records are missing (with the command that writes them),
                with `allow_missing` all of them; several provenances would do.
        """
        required = dataset.required_records()
        if not len(required):
            raise UserError(
                f"{dataset.path}: no episode has both images and poses, there are no samples to feed"
            )
        found = FeatureStore.provenances(cache_dir)
        if features is not None:
            found = [entry for entry in found if entry[0].startswith(features)]
        if not found:
            named = f" named {features!r}" if features else ""
            raise UserError(
                f"{cache_dir}: holds no features{named}; export them with `python -m experiments.export "
                f"{dataset.path} --backbone PATH_OR_ID --cache {cache_dir}`"
            )
        candidates = []
        for name, provenance in found:
            store = FeatureStore.open(cache_dir, name)
            wanted = store.positions(record_keys(dataset, required, provenance))
            candidates.append((name, store, wanted))
        usable = [entry for entry in candidates if (entry[2] >= 0).all()]
        if not usable and allow_missing:
            usable = [entry for entry in candidates if (entry[2] >= 0).any()]
        if len(usable) > 1:
            listed = "; ".join(
                f"{name} ({_describe(store.provenance)}, {int((wanted >= 0).sum())} of {len(required)} records)"
                for name, store, wanted in usable
            )
            raise UserError(
                f"{cache_dir}: several sets of features fit {dataset.path}, choose with --features NAME: {listed}"
            )
        if not usable:
            raise _missing(
                dataset, cache_dir, required, max(candidates, key=lambda e: int((e[2] >= 0).sum()))
            )
        name, store, wanted = usable[0]
        store.mark_used(wanted)
        positions = np.full(len(dataset.records), -1, np.int64)
        positions[required] = wanted
        return cls(dataset, store, name, positions)

    @property
    def records(self) -> np.ndarray:
        """The ascending indices of the records that the table holds."""
        return self._records

    def rows(self, record_index: np.ndarray) -> np.ndarray:
        """Returns (n,) i32: each record's place in `records`; the length of `records` for −1.

        Raises:
            KeyError: a record that no sample of the data set needs.
        """
        record_index = np.asarray(record_index, np.int64)
        self._check_held(record_index)
        return np.where(record_index >= 0, self._row_of[record_index], len(self._records)).astype(np.int32)

    def sample_ticks(self, split: Split) -> np.ndarray:
        """Returns the int64 tick rows, ascending, of the samples of a split that have their features.

        Training and evaluation choose their samples here, and only here.
        """
        ticks = self._dataset.sample_ticks(split)
        return ticks[self._positions[self._dataset.record_index(ticks)] >= 0]

    def missing_note(self) -> str:
        """Returns in one line how many records are missing and how many samples that leaves; "" if none is."""
        if not self.num_missing:
            return ""
        left = ", ".join(
            f"{len(self.sample_ticks(split))} of {len(self._dataset.sample_ticks(split))} {name}"
            for split, name in (("train", "training"), ("val", "held-out"))
        )
        return (
            f"{self.num_missing} of {self.num_required} records that {self._dataset.path} needs have no features in "
            f"{self.name}; left are {left} samples"
        )

    def gather(self, record_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns features (n, S, V) in the storage type and their mask (n, S) bool.

        record_index: (n,) indices into `dataset.records`; −1 gives masked zeros. Absent slots are zero and masked.

        Raises:
            DamagedShardError: a record's bytes do not match their checksum.
            KeyError: a record that has no features here, or that no sample of the data set needs.
        """
        if self._table is not None:
            row = self.rows(record_index)
            return self._table[row], self._table_mask[row]
        record_index = np.asarray(record_index, np.int64)
        self._check_held(record_index)
        return self._read(record_index)

    def _check_held(self, record_index: np.ndarray) -> None:
        unknown = (record_index >= 0) & (self._positions[record_index] < 0)
        if unknown.any():
            raise KeyError(f"record {record_index[unknown][0]} has no features, or no sample needs it")

    def _read(self, record_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        present = record_index >= 0
        values = np.zeros((len(record_index), self.num_slots, self.width), self.dtype)
        positions = self._positions[record_index[present]]
        lengths = np.zeros(len(record_index), np.int64)
        lengths[present] = self._store.num_slots(positions)
        mask = self._layout.mask(self._views[record_index], lengths)
        self._layout.place(self._store.read_at(positions), mask, values)
        return values, mask


def record_keys(
    dataset: PackedDataset, records: Sequence[int] | Int[np.ndarray, " n"], provenance: Provenance
) -> list[str]:
    """Returns the cache key of each of the given records under a provenance."""
    digest = provenance.digest()
    chosen = (dataset.records[int(i)] for i in records)
    return [record_key(digest, record.prompt, [image.digest for image in record.images]) for record in chosen]


def _describe(provenance: Provenance) -> str:
    pooling = (
        f"grid {provenance.grid}x{provenance.grid}" if provenance.pooling == "grid" else provenance.pooling
    )
    origin = ", with adapter" if provenance.adapter else ", imported" if provenance.is_imported else ""
    return f"{provenance.backbone_name}, {pooling}, {provenance.dtype}{origin}"


def _missing(
    dataset: PackedDataset,
    cache_dir: str | Path,
    required: np.ndarray,
    candidate: tuple[str, FeatureStore, np.ndarray],
) -> UserError:
    name, store, positions = candidate
    absent = required[positions < 0]
    first = []
    for index in absent[:NUM_LISTED]:
        record = dataset.records[int(index)]
        first.append(f"{record.images[0].path} ({record.prompt!r})")
    damaged = f", {len(store.damaged)} damaged shard(s) set aside" if store.damaged else ""
    if store.provenance.is_imported:
        remedy = (
            f"Import more files with `python -m experiments.cache import {cache_dir} REFERENCE_DIR {dataset.path} "
            f"--backbone {shlex.quote(store.provenance.backbone_name)}`"
        )
    else:
        remedy = (
            f"Export them with `python -m experiments.export {dataset.path} --cache {cache_dir} "
            f"{store.provenance.export_options()}`"
        )
    rest = ", or go on without their samples by --allow-missing" if len(absent) < len(required) else ""
    return UserError(
        f"{cache_dir}: {len(absent)} of {len(required)} records that {dataset.path} needs have no features in {name} "
        f"({_describe(store.provenance)}){damaged}; the first: {', '.join(first)}. {remedy}{rest}"
    )
