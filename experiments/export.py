"""Writes the vision-language features that a data set needs: `python -m experiments.export DATA …`."""

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments import cli
from experiments.data import open_dataset
from feature_cache.backbone import check_device, find_backbone
from feature_cache.exporter import export
from feature_cache.processor import parse_image_size
from feature_cache.worklist import make_worklist, process_share
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.packed_dataset import INDEX_FILE, PackedDataset
from vla_jax.dataset.preparation import prepare
from vla_jax.errors import UserError
from vla_jax.optional_torch import require
from vla_jax.storage.replacing import writing_to

DESCRIPTION = """Encodes the camera images and prompts of a data set with a frozen Qwen2.5-VL and writes the features
into a cache. Interrupted exports go on where they were. On several GPUs:
torchrun --nproc-per-node N -m experiments.export …"""


@dataclasses.dataclass(frozen=True)
class Arguments:
    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Prepared data set (see `prepare`), or a folder of recorded episodes, whose pictures are then paired by its
    defaults."""
    backbone: str
    """Qwen2.5-VL: a local directory, or a model hub's name such as Qwen/Qwen2.5-VL-3B-Instruct."""
    cache: Path
    """Feature cache to fill; what it already has is skipped."""
    pooling: Literal["grid", "mean", "last", "tokens"] = "grid"
    """Slots per record: K×K cells of each image and the mean of the text; the mean of all tokens; the last
    token; or all tokens."""
    grid: int = 2
    """Cells per side of each image, for `--pooling grid`."""
    image_size: str = "360x640"
    """HEIGHTxWIDTH, or a number of pixels: larger images are shrunk to this many pixels, keeping their shape; none
    is enlarged."""
    adapter: str | None = None
    """Directory of a PEFT LoRA adapter, merged into the backbone first."""
    layer: int = -1
    """Hidden layer to take: -1 is the last, 0 the embeddings."""
    dtype: Literal["float16", "bfloat16"] = "float16"
    """Number type of the stored features."""
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    """Number type of the backbone; by default bfloat16 on a GPU and float32 on a CPU."""
    device: str | None = None
    """Torch device; by default this process's GPU (see torchrun), else the CPU."""
    batch_tokens: int | None = None
    """Tokens per batch; by default 16384 on a GPU and 4096 on a CPU. Halved when memory runs out."""
    threads: int | None = None
    """Threads that read and decode images; by default one per processor, at most 8."""


def main(arguments: Arguments) -> int | None:
    require("export", "torch", "transformers", "tokenizers")
    check_device(arguments.device)
    with writing_to(arguments.cache), data_to_export(arguments.data) as dataset:
        return _export(arguments, dataset)


@contextlib.contextmanager
def data_to_export(path: Path) -> Iterator[PackedDataset]:
    """Opens a data set; prepares a folder of episodes for the time of the export.

    The features are found again when these episodes are prepared for training: a key is made of prompt and pictures.

    Raises:
        UserError: nothing usable is there.
    """
    if not path.is_dir() or (path / INDEX_FILE).is_file():
        yield open_dataset(path)
        return
    num_workers = max(1, (os.cpu_count() or 1) // process_share()[1])
    with tempfile.TemporaryDirectory(prefix="vla-jax-export-") as folder:
        # Only prompts and pictures are needed.
        options = PrepareOptions(episode=EpisodeOptions(sensor=False), num_workers=num_workers)
        result = prepare([str(path)], Path(folder) / "data", options)
        faults = [finding for finding in result.findings if finding.is_fault]
        first = f", the first: {faults[0].episode}: {faults[0].reason}" if faults else ""
        print(
            f"{path}: recorded episodes, read with the defaults of `prepare`: {len(result.dataset.episodes)} used, "
            f"{len(result.faulty)} faulty and left out{first}",
            file=sys.stderr,
        )
        yield result.dataset


def _export(arguments: Arguments, dataset: PackedDataset) -> int | None:
    required = [dataset.records[i] for i in dataset.required_records()]
    if not required:
        raise UserError(f"{arguments.data}: nothing to export, no episode has samples with images")
    files = find_backbone(
        arguments.backbone, max_pixels=parse_image_size(arguments.image_size), adapter=arguments.adapter
    )
    provenance = files.provenance(
        pooling=arguments.pooling, grid=arguments.grid, layer=arguments.layer, dtype=arguments.dtype
    )
    items = make_worklist(provenance.digest(), [(record.prompt, record.images) for record in required])
    summary = export(
        files,
        provenance,
        items,
        arguments.cache,
        device=arguments.device,
        compute_dtype=arguments.compute_dtype,
        batch_tokens=arguments.batch_tokens,
        num_threads=arguments.threads,
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
        f"features {provenance.name()} ({arguments.pooling} pooling)"
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
