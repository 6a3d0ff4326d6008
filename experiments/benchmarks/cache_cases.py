"""The cases of the cache benchmark: export, reading records, and opening a large cache."""

import gc
import random
import shutil
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.benchmarks.timing import time_in_turn, timed
from feature_cache.backbone import Backbone, find_backbone, load_backbone
from feature_cache.exporter import export
from feature_cache.keys import image_digest, record_key
from feature_cache.store import FeatureStore, ShardWriter
from feature_cache.worklist import ImageSource, WorkItem, make_work
from vla_jax.contracts.provenance import Provenance
from vla_jax.progress import progress_bar

# Calls of a side per round where a call takes milliseconds.
READS_PER_ROUND = 10
# Rows of random features; larger caches repeat them, under keys of their own.
BLOCK_ROWS = 8192
# Largest difference between the features of the two sides, in units of their largest value: they round to float16.
AGREEMENT = 2e-3


@dataclass(frozen=True)
class Timing:
    """One side of one case. records: of one call."""

    case: str
    side: str
    records: int
    median_s: float
    best_s: float

    @property
    def rate(self) -> float:
        """Records per second, by the median."""
        return self.records / self.median_s


def make_timing(case: str, side: str, records: int, seconds: Sequence[float]) -> Timing:
    """Returns the summary of a side's calls."""
    return Timing(case, side, records, statistics.median(seconds), min(seconds))


# --- export ---


@dataclass(frozen=True)
class ExportSettings:
    """What to export. image_size: (height, width) of the pictures on disk, pixels."""

    records: int
    views: int
    image_size: tuple[int, int]
    max_pixels: int
    device: str | None
    rounds: int


def time_export(folder: Path, backbone_path: Path, settings: ExportSettings) -> tuple[list[Timing], dict]:
    """Times our export and the reference's loop, mean-pooled features of the same records by the same backbone.

    Both are timed from the list of records to the last file; the backbone is loaded before. Returns the timings, and
    what else there is to know.

    Raises:
        RuntimeError: the two sides give different features.
    """
    files = find_backbone(str(backbone_path), max_pixels=settings.max_pixels)
    provenance = files.provenance(pooling="mean")
    backbone = load_backbone(files, device=settings.device)
    items = _write_records(folder / "pictures", provenance, settings)
    busy_shares = []

    def ours() -> None:
        shutil.rmtree(folder / "cache", ignore_errors=True)
        summary = export(files, provenance, items, folder / "cache", backbone=backbone)
        busy_shares.append(summary.busy_share)

    def reference(*, empty: bool) -> None:
        shutil.rmtree(folder / "reference", ignore_errors=True)
        (folder / "reference").mkdir()
        _reference_loop(backbone, items, folder / "reference", empty=empty)

    sides = {
        "reference loop": lambda: reference(empty=True),
        "reference loop, cache kept": lambda: reference(empty=False),
        "ours": ours,
    }
    for call in sides.values():
        call()
    difference = _difference(folder, provenance, items)
    if difference > AGREEMENT:
        raise RuntimeError(f"the two exports differ by {difference:.1e} of the largest value")
    busy_shares.clear()
    seconds = time_in_turn(sides, settings.rounds)
    timings = [make_timing("export", side, len(items), values) for side, values in seconds.items()]
    return timings, {
        "difference": difference,
        "tokens_per_record": len(backbone.processor.prepare(items[0].prompt, _decode(items[0])).tokens),
        "device": str(backbone.device),
        "model_busy_share": statistics.median(busy_shares),
    }


def _write_records(folder: Path, provenance: Provenance, settings: ExportSettings) -> list[WorkItem]:
    folder.mkdir(parents=True)
    height, width = settings.image_size
    rng = np.random.default_rng(0)
    records = []
    for i in range(settings.records):
        images = []
        for view in range(settings.views):
            # Smooth shapes: noise would make the files, and so the decoding, far larger than a camera's.
            coarse = rng.integers(0, 256, (height // 40 + 1, width // 40 + 1, 3), dtype=np.uint8)
            path = folder / f"{i}_{view}.jpg"
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
            images.append(ImageSource(str(path), image_digest(path.read_bytes())))
        records.append(("Insert the needle into the red marker.", images))
    return make_work(provenance.digest(), records)


def _decode(item: WorkItem) -> list[Image.Image]:
    return [Image.open(image.path).convert("RGB") for image in item.images]


def _reference_loop(backbone: Backbone, items: Sequence[WorkItem], out: Path, *, empty: bool) -> None:
    """The reference's way: one record at a time from picture to file, memory emptied after each.

    It is given our processor, which remembers a prompt's tokens; the stock one would be slower.
    """
    import torch

    provenance = Provenance("", "", None, {}, "", pooling="mean")
    for item in items:
        record = backbone.processor.prepare(item.prompt, _decode(item))
        (features,) = backbone.encode([record], provenance)
        torch.save(torch.from_numpy(features)[None].half(), out / f"{item.key}.pt")
        if empty:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _difference(folder: Path, provenance: Provenance, items: Sequence[WorkItem]) -> float:
    """Returns the largest difference between the two sides' files, as a share of the largest value."""
    import torch

    store = FeatureStore.open(folder / "cache", provenance.name())
    ours = np.concatenate(store.read([item.key for item in items])).astype(np.float32)
    files = [folder / "reference" / f"{item.key}.pt" for item in items]
    theirs = torch.cat([torch.load(file, weights_only=True) for file in files])[:, 0].float().numpy()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# --- reading ---


def time_reading(folder: Path, records: int, width: int, gathered: int, rounds: int) -> list[Timing]:
    """Times random gathers of `gathered` pooled records out of `records`, all of them in the system's page cache.

    Raises:
        RuntimeError: the two sides read different features.
    """
    import torch

    provenance, keys = write_cache(folder / "small", records, width)
    store = FeatureStore.open(folder / "small", provenance.name())
    (folder / "files").mkdir()
    for key, features in zip(keys, store.read(keys), strict=True):
        torch.save(torch.from_numpy(features[None].copy()), folder / "files" / f"{key}.pt")

    def load_files(chosen: list[str]) -> np.ndarray:
        files = [folder / "files" / f"{key}.pt" for key in chosen]
        return torch.cat([torch.load(file, weights_only=True) for file in files])[:, 0].numpy()

    draw = random.Random(0)
    draws = [draw.sample(keys, gathered) for _ in range(rounds * READS_PER_ROUND)]
    # A store checks the checksum of each record that it has not read before.
    fresh = [FeatureStore.open(folder / "small", provenance.name()) for _ in draws]
    if not np.array_equal(load_files(draws[0]), np.concatenate(store.read(draws[0]))):
        raise RuntimeError("the two sides read different features")
    sides = {
        "torch.load per record": _each(draws, load_files),
        "ours, records not read before": _each(
            zip(fresh, draws, strict=True), lambda pair: np.concatenate(pair[0].read(pair[1]))
        ),
        "ours": _each(draws, lambda chosen: np.concatenate(store.read(chosen))),
    }
    seconds = time_in_turn(sides, len(draws))
    return [make_timing("read", side, gathered, values) for side, values in seconds.items()]


def _each(inputs: Iterable[Any], call: Callable[[Any], Any]) -> Callable[[], Any]:
    """Returns a function that calls with the next of the inputs each time."""
    remaining = iter(inputs)
    return lambda: call(next(remaining))


def write_cache(cache: Path, records: int, width: int) -> tuple[Provenance, list[str]]:
    """Writes pooled records of random numbers by the exporter's writer; returns provenance and keys."""
    provenance = Provenance("random numbers", "benchmark", None, {}, "", pooling="mean")
    digest = provenance.digest()
    block = np.random.default_rng(0).normal(size=(min(records, BLOCK_ROWS), width)).astype(np.float16)
    keys = [record_key(digest, str(i), []) for i in range(records)]
    writer = ShardWriter(cache, provenance)
    for i, key in enumerate(progress_bar(keys, desc="write", unit="record")):
        row = i % len(block)
        writer.add(key, block[row : row + 1])
    writer.flush()
    return provenance, keys


# --- opening ---


def time_opening(
    folder: Path, records: int, width: int, gathered: int, rounds: int
) -> tuple[list[Timing], dict[str, Any]]:
    """Times opening a cache of so many pooled records, and random gathers from it; warm, that is in the page cache.

    Returns the timings, and what else there is to know.
    """
    cache = folder / "large"
    writing, (provenance, keys) = timed(lambda: write_cache(cache, records, width))
    opening = time_in_turn({"ours": lambda: FeatureStore.open(cache, provenance.name())}, rounds)["ours"]
    store = FeatureStore.open(cache, provenance.name())
    draw = random.Random(0)
    draws = [draw.sample(keys, gathered) for _ in range(rounds * READS_PER_ROUND)]
    timings = [make_timing("open", f"{records} records", records, opening)]
    # The same draws twice: only the first time are their checksums compared.
    for side in ("records not read before", "records read before"):
        gather = _each(draws, lambda chosen: np.concatenate(store.read(chosen)))
        seconds = time_in_turn({side: gather}, len(draws))[side]
        timings.append(make_timing("gather", side, gathered, seconds))
    return timings, {
        "shards": len(store.shard_paths),
        "gigabytes": sum(path.stat().st_size for path in store.shard_paths) / 1e9,
        "write_seconds": writing,
        "content": f"{min(records, BLOCK_ROWS)} rows of random numbers, repeated under keys of their own",
    }
