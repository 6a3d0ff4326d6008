"""A case of the cache benchmark: our export of mean-pooled features beside the reference's loop."""

import gc
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from experiments.benchmarks.timing import Timing, time_in_turn
from experiments.benchmarks.workspace import made_up_provenance
from feature_cache.backbone import Backbone, find_backbone, load_backbone
from feature_cache.exporter import export
from feature_cache.keys import image_digest
from feature_cache.store import FeatureStore
from feature_cache.worklist import ImageSource, WorkItem, make_worklist
from vla_jax.contracts.provenance import Provenance

# Largest difference between the features of the two sides, in units of their largest value: they round to float16.
AGREEMENT = 2e-3


@dataclass(frozen=True)
class ExportSettings:
    """What to export. image_size: (height, width) of the pictures on disk, pixels."""

    records: int
    views: int
    image_size: tuple[int, int]
    max_pixels: int
    device: str | None
    rounds: int


def time_export(
    folder: Path, backbone_path: Path, settings: ExportSettings
) -> tuple[list[Timing], dict[str, Any]]:
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
    timings = [
        Timing(case="export", side=side, seconds=values, amount=len(items), unit="records")
        for side, values in seconds.items()
    ]
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
    return make_worklist(provenance.digest(), records)


def _decode(item: WorkItem) -> list[Image.Image]:
    return [Image.open(image.path).convert("RGB") for image in item.images]


def _reference_loop(backbone: Backbone, items: Sequence[WorkItem], out: Path, *, empty: bool) -> None:
    """The reference's way: one record at a time from picture to file, memory emptied after each.

    It is given our processor, which remembers a prompt's tokens; the stock one would be slower.
    """
    provenance = made_up_provenance("", pooling="mean")
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
    store = FeatureStore.open(folder / "cache", provenance.name())
    ours = np.concatenate(store.read([item.key for item in items])).astype(np.float32)
    files = [folder / "reference" / f"{item.key}.pt" for item in items]
    theirs = torch.cat([torch.load(file, weights_only=True) for file in files])[:, 0].float().numpy()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
