"""`python -m experiments.benchmarks.cache`: the feature cache, timed beside the reference's way."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments import cli
from experiments.benchmarks.frame import Frame, FrameArguments, require_positive, scratch_folder, timing_table
from experiments.benchmarks.machine import conditions
from experiments.benchmarks.timing import Timing
from feature_cache.processor import parse_image_size
from feature_cache.tiny_backbone import write_tiny_backbone
from vla_jax.errors import UserError
from vla_jax.optional_torch import import_torch

DESCRIPTION = """Times, turn by turn and in one process: the export of mean-pooled features beside the reference's
loop (one record at a time, decoding and model one after the other, one file per record, memory emptied after each);
random gathers from our store beside one torch.load per record; and opening a large cache. Needs the `export` extra."""

CaseName = Literal["export", "read", "open"]


@dataclass(frozen=True, kw_only=True)
class Arguments(FrameArguments):
    """Options of the command."""

    rounds: int = 5
    """How often each side is timed, in turn with the others; the table shows medians. Gathers are timed ten times as
    often."""
    cases: tuple[CaseName, ...] = ("export", "read", "open")
    """What to time."""
    backbone: Path | None = None
    """Backbone directory for the export; by default a tiny random one is made."""
    export_records: int = 48
    """Records of the export."""
    views: int = 5
    """Pictures per record."""
    picture_size: str = "360x640"
    """HEIGHTxWIDTH of the pictures on disk."""
    image_size: str = "360x640"
    """As in `export`: larger pictures are shrunk to this many pixels."""
    device: str | None = None
    """Torch device of the export; by default a GPU if there is one."""
    read_records: int = 4096
    """Records to read from, one file each on the reference's side."""
    gather: int = 256
    """Records per gather."""
    records: int = 1_000_000
    """Records of the large cache; it takes 2 bytes times records times width of disk."""
    width: int = 2048
    """Feature width of the caches that are read and opened."""
    scratch: Path | None = None
    """Where to write all files, into a folder that is removed afterwards; the system's temporary one by default."""


def main(arguments: Arguments) -> None:
    """Times the cases and prints the table."""
    require_positive(arguments, "rounds", "export_records", "gather", "width")
    if min(arguments.read_records, arguments.records) < arguments.gather:
        raise UserError(f"a gather of {arguments.gather} needs as many records to choose from")
    import_torch("the benchmark")
    frame = Frame(arguments, conditions("torch", "transformers", "numpy", "pillow"))
    timings: list[Timing] = []
    details: dict[str, Any] = {}
    with scratch_folder(arguments.scratch) as temporary:
        for case in arguments.cases:
            found, details[case] = run_case(case, arguments, temporary)
            timings += found
            frame.say(f"{case}: {details[case]}")
    frame.finish(timings, timing_table(timings), details=details)


def run_case(case: CaseName, arguments: Arguments, folder: Path) -> tuple[list[Timing], dict[str, Any]]:
    """Runs one case in `folder`; returns its timings, and what else there is to know."""
    # The cases import torch.
    from experiments.benchmarks import cache_export, cache_reading

    gather, rounds = arguments.gather, arguments.rounds
    if case == "read":
        timings = cache_reading.time_reading(folder, arguments.read_records, arguments.width, gather, rounds)
        return timings, {"records": arguments.read_records, "width": arguments.width}
    if case == "open":
        return cache_reading.time_opening(folder, arguments.records, arguments.width, gather, rounds)
    height, _, width = arguments.picture_size.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"--picture-size {arguments.picture_size!r}: write HEIGHTxWIDTH in pixels")
    settings = cache_export.ExportSettings(
        records=arguments.export_records,
        views=arguments.views,
        image_size=(int(height), int(width)),
        max_pixels=parse_image_size(arguments.image_size),
        device=arguments.device,
        rounds=rounds,
    )
    backbone = arguments.backbone or write_tiny_backbone(folder / "backbone")
    return cache_export.time_export(folder, backbone, settings)


COMMAND = cli.Command("benchmarks.cache", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
