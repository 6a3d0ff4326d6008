"""Writes the vision-language features that a data set needs: `python -m experiments.export DATA …`."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments import cli
from experiments.config_options import given, options_for
from experiments.data import open_or_prepare
from feature_cache.backbone import check_device, find_backbone
from feature_cache.exporter import export
from feature_cache.processor import parse_image_size
from feature_cache.worklist import make_worklist, process_share
from vla_jax.contracts.provenance import Provenance
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.optional_torch import require
from vla_jax.storage.replacing import writing_to

DESCRIPTION = """Encodes the camera images and prompts of a data set with a frozen Qwen2.5-VL and writes the features
into a cache. Interrupted exports go on where they were. On several GPUs:
torchrun --nproc-per-node N -m experiments.export …"""

FEATURES = {name: name for name in ("pooling", "grid", "layer", "dtype")}
"""Option → the field of `Provenance` that it sets."""
FeatureOptions = options_for(Provenance, FEATURES)


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How pictures become features, beside what the features' own options say."""

    image_size: str = "360x640"
    """HEIGHTxWIDTH, or a number of pixels: larger images are shrunk to this many pixels, keeping their shape; none
    is enlarged."""
    adapter: str | None = None
    """Directory of a PEFT LoRA adapter, merged into the backbone first."""


@dataclasses.dataclass(frozen=True)
class Running:
    """On what the backbone computes, and how fast."""

    compute_dtype: Literal["float32", "bfloat16"] | None = None
    """Number type of the backbone; by default bfloat16 on a GPU and float32 on a CPU."""
    device: str | None = None
    """Torch device; by default this process's GPU (see torchrun), else the CPU."""
    batch_tokens: int | None = None
    """Tokens per batch; by default 16384 on a GPU and 4096 on a CPU. Halved when memory runs out."""
    threads: int | None = None
    """Threads that read and decode images; by default one per processor, at most 8."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Prepared data set (see `prepare`), or a folder of recorded episodes, whose pictures are then paired by its
    defaults."""
    backbone: str
    """Qwen2.5-VL: a local directory, or a model hub's name such as Qwen/Qwen2.5-VL-3B-Instruct."""
    cache: Path
    """Feature cache to fill; what it already has is skipped."""
    features: Annotated[
        object, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="feature", constructor=FeatureOptions)
    ] = dataclasses.field(default_factory=FeatureOptions)
    encoding: Annotated[Encoding, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="picture")] = (
        dataclasses.field(default_factory=Encoding)
    )
    running: Annotated[Running, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="machine")] = dataclasses.field(
        default_factory=Running
    )


def main(arguments: Arguments) -> int | None:
    require("export", "torch", "transformers", "tokenizers")
    check_device(arguments.running.device)
    num_workers = max(1, (os.cpu_count() or 1) // process_share()[1])
    # Only prompts and pictures are needed, and the features are found again when these episodes are prepared for
    # training: a key is made of both.
    with (
        writing_to(arguments.cache),
        open_or_prepare(arguments.data, sensor=False, num_workers=num_workers) as dataset,
    ):
        return _export(arguments, dataset)


def _export(arguments: Arguments, dataset: PackedDataset) -> int | None:
    required = [dataset.records[i] for i in dataset.required_records()]
    if not required:
        raise UserError(f"{arguments.data}: nothing to export, no episode has samples with images")
    encoding, running = arguments.encoding, arguments.running
    files = find_backbone(
        arguments.backbone, max_pixels=parse_image_size(encoding.image_size), adapter=encoding.adapter
    )
    provenance = files.provenance(**given(arguments.features, FEATURES))
    items = make_worklist(provenance.digest(), [(record.prompt, record.images) for record in required])
    summary = export(
        files,
        provenance,
        items,
        arguments.cache,
        device=running.device,
        compute_dtype=running.compute_dtype,
        batch_tokens=running.batch_tokens,
        num_threads=running.threads,
    )
    rank, num_ranks = process_share()
    rate = ""
    if summary.num_written:
        rate = (
            f" at {summary.num_written / summary.seconds:.1f} records/s (model busy {summary.busy_share:.0%})"
        )
    print(
        f"{f'rank {rank} of {num_ranks}: ' if num_ranks > 1 else ''}"
        f"{arguments.cache}: {summary.num_written} records written{rate}, {summary.num_present} already there; "
        f"features {provenance.name()} ({provenance.pooling} pooling)"
    )
    if summary.num_elsewhere:
        print(
            f"{summary.num_elsewhere} records of the other ranks are not there yet; should one have been lost, the "
            "same command goes on from here"
        )
    if summary.interrupted_by is not None:
        print(f"interrupted with {summary.num_left} records left; the same command goes on from here")
        return 128 + summary.interrupted_by
    return None


COMMAND = cli.Command("export", Arguments, DESCRIPTION, main)
if __name__ == "__main__":
    COMMAND.run()
