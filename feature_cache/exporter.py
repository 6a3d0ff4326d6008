"""Filling the cache: encodes the records that are missing and writes them as shards.

Images are read, checked and decoded by threads a few batches ahead of the model. Batches are formed over the whole
list of work, so that their composition, and with it every last bit of the features, does not depend on where an
earlier export was interrupted.
"""

import contextlib
import dataclasses
import logging
import os
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from feature_cache import shard as shards
from feature_cache.backbone import Backbone, BackboneFiles, default_device, load_backbone
from feature_cache.encoder import RecordEncoder
from feature_cache.export_progress import SharedProgress
from feature_cache.processor import PreparedRecord
from feature_cache.store import FeatureStore, ShardWriter, prepare_directory, shard_paths
from feature_cache.worklist import WorkItem, count_tokens, make_batches, process_share, read_images
from vla_jax.contracts.checks import LARGEST_INT
from vla_jax.contracts.provenance import Provenance
from vla_jax.errors import UserError
from vla_jax.progress import progress_bar
from vla_jax.storage.stop_signals import StopFlag, stop_requested

logger = logging.getLogger(__name__)

# A shard is written when it is this full or this old, whichever comes first: few files, little to lose. The first
# ones are written earlier, so that the other ranks soon see how fast this one is.
_SHARD_BYTES = 64 << 20
_SHARD_SECONDS = 60.0
_FIRST_SHARD_SECONDS = 5.0
# Between two looks at what the other ranks have written.
_LOOK_SECONDS = 5.0
_STOPPING = "stopping after the batch in hand; its shard is written (again to end at once)"
# Batches whose images are decoded ahead of the model.
_BATCHES_AHEAD = 3
DEFAULT_BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}


@dataclasses.dataclass(frozen=True)
class ExportSummary:
    """What one process of an export did."""

    num_present: int
    """Records that the cache already had."""
    num_written: int
    num_left: int
    """Records of this process's share that an interruption left undone."""
    num_elsewhere: int
    """Records of other processes' shares that were not in the cache yet at the end."""
    seconds: float
    """Time from the first batch to the last shard."""
    busy_share: float
    """Share of that time in which batches were encoded, their copying to the device included; the rest went to
    waiting for images and to writing."""
    interrupted_by: int | None
    """The signal that ended the export early, or None."""


def export(
    files: BackboneFiles,
    provenance: Provenance,
    items: list[WorkItem],
    cache_dir: str | os.PathLike,
    *,
    backbone: Backbone | None = None,
    device: str | None = None,
    compute_dtype: str | None = None,
    batch_tokens: int | None = None,
    num_threads: int | None = None,
) -> ExportSummary:
    """Encodes the items that the cache lacks and writes them into it.

    The backbone is loaded only when something of this process's share is missing. Damaged shards are set aside first
    and their records encoded anew. Under torchrun each process takes every n-th batch, and the first shows the
    progress of all. SIGTERM and Ctrl-C finish the batch and the shard in hand; a second one ends at once.

    provenance: of these files, from `files.provenance`.
    backbone: the files' backbone, where it is loaded already.
    device, compute_dtype: see `load_backbone`.
    batch_tokens: padded tokens per batch; None takes a default for the device.
    num_threads: threads that read and decode images; None takes one per processor, at most 8.

    Raises:
        UserError: an image is missing or has changed, memory does not suffice for a single record, or the
            cache cannot be written to.
    """
    for option, value in (("batch-tokens", batch_tokens), ("threads", num_threads)):
        if value is not None and not 1 <= value <= LARGEST_INT:
            raise UserError(f"--{option} {value} is impossible; give at least 1")
    store = open_checked(cache_dir, provenance)
    missing = ~store.contains([item.key for item in items])
    num_present = len(items) - int(missing.sum())
    if not missing.any():
        return ExportSummary(num_present, 0, 0, 0, 0.0, 0.0, None)
    num_threads = num_threads or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_threads) as threads:
        # Before the backbone is loaded, which may take minutes: this finds the images that are missing.
        num_tokens = count_tokens(items, files.processor.num_tokens, threads)
        device = device or default_device() if backbone is None else str(backbone.device)
        batch_tokens = batch_tokens or DEFAULT_BATCH_TOKENS.get(device.partition(":")[0], 4096)
        rank, world_size = process_share()
        # Shares of the whole list, not of what is missing: a rank that starts late, when others have written
        # already, would otherwise count differently from them, and batches would be done twice or not at all.
        share = [batch[missing[batch]] for batch in make_batches(num_tokens, batch_tokens)[rank::world_size]]
        todo = [[items[i] for i in batch] for batch in share if len(batch)]
        if not todo:
            return ExportSummary(num_present, 0, 0, int(missing.sum()), 0.0, 0.0, None)
        backbone = backbone or load_backbone(files, device=device, compute_dtype=compute_dtype)
        progress = SharedProgress(
            store.directory, (items[i].key for i in np.flatnonzero(missing)), store.shard_paths
        )
        bar = progress_bar(
            total=progress.total,
            desc="export" if world_size == 1 else f"export, {world_size} ranks",
            unit="record",
            # The others' records come a shard at a time, so that only the mean over the run is a rate.
            smoothing=0.1 if world_size == 1 else 0,
            disable=rank > 0,
        )
        writer = ShardWriter(cache_dir, provenance, max_bytes=1 << 62)
        run = _Run(RecordEncoder(backbone, provenance), writer, progress)
        with bar, stop_requested(_STOPPING) as stop, _threads_for_decoding(backbone):
            start = time.monotonic()
            run.encode_all(todo, threads, bar, stop)
            seconds = max(time.monotonic() - start, 1e-9)
    num_left = sum(map(len, todo)) - run.num_written
    num_elsewhere = progress.total - progress.num_done - num_left
    return ExportSummary(
        num_present,
        run.num_written,
        num_left,
        num_elsewhere,
        seconds,
        run.busy_seconds / seconds,
        stop.signal,
    )


def open_checked(cache_dir: str | os.PathLike, provenance: Provenance) -> FeatureStore:
    """Opens the store of a provenance after setting aside every shard that is damaged, with a warning each.

    Every byte is compared with its checksum: what an export skips must be readable.
    """
    directory = prepare_directory(cache_dir, provenance)
    for error in shards.find_damaged(shard_paths(directory)):
        path = error.path
        logger.warning("%s: damaged (%s); set aside, its features are exported again", path, error.reason)
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            path.rename(path.with_name(path.name + ".damaged"))
    return FeatureStore.open(cache_dir, provenance.name())


class _Run:
    """One process's share of an export in progress."""

    def __init__(self, encoder: RecordEncoder, writer: ShardWriter, progress: SharedProgress) -> None:
        self._encoder = encoder
        self._writer = writer
        self._progress = progress
        self.num_written = 0
        self.busy_seconds = 0.0

    def encode_all(
        self, todo: list[list[WorkItem]], threads: ThreadPoolExecutor, bar: tqdm, stop: StopFlag
    ) -> None:
        """Encodes and writes the batches in order, until the end or a signal."""
        started = looked = time.monotonic()
        shard_seconds = _FIRST_SHARD_SECONDS
        with contextlib.closing(_prepared_batches(self._encoder, todo, threads)) as prepared:
            try:
                for batch, records, inputs in prepared:
                    self._encode(batch, records, inputs)
                    now = time.monotonic()
                    if now - looked >= _LOOK_SECONDS:
                        self._progress.look()
                        looked = now
                    bar.update(self._progress.num_done - bar.n)
                    if stop.is_set:
                        break
                    if self._writer.num_bytes >= _SHARD_BYTES or now - started >= shard_seconds:
                        self._writer.flush()
                        started = now
                        shard_seconds = min(2 * shard_seconds, _SHARD_SECONDS)
            finally:
                # Also when an image turns out to be damaged: what is encoded stays encoded.
                self._writer.flush()
        self._progress.look()
        bar.update(self._progress.num_done - bar.n)

    def _encode(self, batch: list[WorkItem], records: list[PreparedRecord], inputs: dict[str, Any]) -> None:
        begin = time.monotonic()
        features = self._encoder.encode(records, inputs)
        self.busy_seconds += time.monotonic() - begin
        for item, slots in zip(batch, features, strict=True):
            self._writer.add(item.key, slots, prompt=item.prompt)
        self.num_written += len(batch)
        self._progress.add(item.key for item in batch)


def _prepared_batches(
    encoder: RecordEncoder, todo: list[list[WorkItem]], threads: ThreadPoolExecutor
) -> Generator[tuple[list[WorkItem], list[PreparedRecord], dict[str, Any]], None, None]:
    """Yields the batches in order, each with its records and their inputs, made by `threads` ahead of time."""

    def prepare(item: WorkItem) -> PreparedRecord:
        return encoder.prepare(item.prompt, read_images(item))

    def collate(records: list[Future[PreparedRecord]]) -> dict[str, Any]:
        # The threads take their work in order, so that all of these are done or in other threads' hands.
        return encoder.collate([record.result() for record in records])

    ahead: deque[tuple[list[WorkItem], list[Future[PreparedRecord]], Future[dict[str, Any]]]] = deque()
    remaining = iter(todo)
    try:
        while True:
            while len(ahead) <= _BATCHES_AHEAD and (batch := next(remaining, None)) is not None:
                records = [threads.submit(prepare, item) for item in batch]
                ahead.append((batch, records, threads.submit(collate, records)))
            if not ahead:
                return
            batch, records, inputs = ahead.popleft()
            yield batch, [record.result() for record in records], inputs.result()
    finally:
        for _, records, inputs in ahead:
            # The inputs first: they would wait for records that nobody makes any more.
            for future in (inputs, *records):
                future.cancel()


@contextlib.contextmanager
def _threads_for_decoding(backbone: Backbone) -> Generator[None, None, None]:
    """Leaves one processor to the decoding threads where the model computes on the same ones.

    Its threads wait for each other many times a record, and one that is kept waiting by a decoder holds up all.
    """
    import torch

    usual = torch.get_num_threads()
    if backbone.device.type == "cpu":
        torch.set_num_threads(max(1, min(usual, (os.cpu_count() or 1) - 1)))
    try:
        yield
    finally:
        torch.set_num_threads(usual)
