"""`python -m experiments.benchmarks.cache`: the feature cache, timed beside the reference's way."""

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from experiments import cli
from experiments.benchmarks import cache_cases
from experiments.benchmarks.timing import machine, scratch_folder
from experiments.console import make_console
from feature_cache.processor import parse_image_size
from feature_cache.tiny_backbone import write_tiny_backbone
from vla_jax.errors import UserError
from vla_jax.optional_torch import import_torch

DESCRIPTION = """Times, turn by turn and in one process: the export of mean-pooled features beside the reference's
loop (one record at a time, decoding and model one after the other, one file per record, memory emptied after each);
random gathers from our store beside one torch.load per record; and opening a large cache. Needs the `export` extra."""

CaseName = Literal["export", "read", "open"]
PACKAGES = ("torch", "transformers", "numpy", "pillow")


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    cases: tuple[CaseName, ...] = ("export", "read", "open")
    """What to time."""
    rounds: int = 5
    """How often each side is timed; the table shows medians. Gathers are timed ten times as often."""
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
    out: Path | None = None
    """JSON file for the figures."""


def main(arguments: Arguments) -> None:
    """Times the cases and prints the table."""
    for name in ("rounds", "export_records", "gather", "width"):
        if getattr(arguments, name) < 1:
            raise UserError(f"{name} is {getattr(arguments, name)}; it must be at least 1")
    if min(arguments.read_records, arguments.records) < arguments.gather:
        raise UserError(f"a gather of {arguments.gather} needs as many records to choose from")
    torch = import_torch("the benchmark")
    console = make_console()
    conditions = {
        **machine(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "torch_threads": torch.get_num_threads(),
    }
    console.print(conditions)
    timings: list[cache_cases.Timing] = []
    details: dict[str, Any] = {}
    with scratch_folder(arguments.scratch) as temporary:
        for case in arguments.cases:
            found, details[case] = run_case(case, arguments, temporary)
            timings += found
    console.print(details)
    console.print(result_table(timings))
    if arguments.out is not None:
        results = [asdict(timing) | {"rate": timing.rate} for timing in timings]
        content = {"conditions": conditions, "details": details, "results": results}
        arguments.out.write_text(json.dumps(content, indent=2))


def run_case(
    case: CaseName, arguments: Arguments, folder: Path
) -> tuple[list[cache_cases.Timing], dict[str, Any]]:
    """Runs one case in `folder`; returns its timings, and what else there is to know."""
    if case == "read":
        timings = cache_cases.time_reading(
            folder, arguments.read_records, arguments.width, arguments.gather, arguments.rounds
        )
        return timings, {"records": arguments.read_records, "width": arguments.width}
    if case == "open":
        return cache_cases.time_opening(
            folder, arguments.records, arguments.width, arguments.gather, arguments.rounds
        )
    height, _, width = arguments.picture_size.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"--picture-size {arguments.picture_size!r}: write HEIGHTxWIDTH in pixels")
    settings = cache_cases.ExportSettings(
        records=arguments.export_records,
        views=arguments.views,
        image_size=(int(height), int(width)),
        max_pixels=parse_image_size(arguments.image_size),
        device=arguments.device,
        rounds=arguments.rounds,
    )
    backbone = arguments.backbone or write_tiny_backbone(folder / "backbone")
    return cache_cases.time_export(folder, backbone, settings)


def result_table(timings: Sequence[cache_cases.Timing]) -> Table:
    """Returns the timings, each with its speed relative to the first side of its case."""
    table = Table("case", "side", "records", "median ms", "best ms", "records/s", "relative")
    first: dict[str, cache_cases.Timing] = {}
    for timing in timings:
        first.setdefault(timing.case, timing)
        table.add_row(
            timing.case,
            timing.side,
            str(timing.records),
            f"{1e3 * timing.median_s:.2f}",
            f"{1e3 * timing.best_s:.2f}",
            f"{timing.rate:.3g}" if timing.rate < 1000 else f"{timing.rate:.0f}",
            f"{timing.rate / first[timing.case].rate:.2f}x",
        )
    return table


COMMAND = cli.Command("benchmarks.cache", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
