"""`python -m experiments.benchmarks.data`: how fast training is fed, beside the PyTorch reference's way."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from rich.table import Table

from experiments import cli
from experiments.benchmarks import feeding_cases
from experiments.benchmarks.feeding_cases import Case, Rate
from experiments.benchmarks.timing import machine, scratch_folder
from experiments.console import make_console
from vla_jax.errors import UserError
from vla_jax.optional_torch import import_torch

DESCRIPTION = """Records made-up episodes of the lab's sizes, packs them, and times from the page cache how many
training samples a second come: fed as training is (by 1 to N threads), as plain numpy copies of the same batches from
ordinary memory, and by the PyTorch reference's pattern (a DataLoader with workers; each sample loads its episode's
whole sensor file and one feature file). Then memory, and the time to open sets of 10, 100 and 1000 episodes. Needs the
`export` extra."""

FeedName = Literal["host", "host-to-device", "device"]


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    feeds: tuple[FeedName, ...] = ("host", "host-to-device", "device")
    """Ways of feeding to time: batches in the host's memory, then whole on the devices as `train --feed host` and
    `--feed device` bring them there."""
    sensor_lengths: tuple[int, ...] = (65, 650)
    """Samples in a sensor window."""
    episodes: int = 12
    """Episodes; of 18 s each, with windows of 650 samples, 12 have 3 GB of sensor files and 290 MB packed."""
    seconds: float = 18.0
    """Length of an episode."""
    batch_size: int = 64
    """Samples in a batch."""
    threads: tuple[int, ...] = ()
    """Numbers of reading threads; by default 1, 2, 4 … up to the number of processors, and twice that."""
    reference_workers: int = 0
    """Worker processes of the reference's loader; 0 takes one per processor."""
    opened: tuple[int, ...] = (10, 100, 1000)
    """Sizes of the sets to open, in episodes."""
    measure_s: float = 3.0
    """How long each is timed, at least."""
    scratch: Path | None = None
    """Where to write the episodes; a temporary folder by default."""
    out: Path | None = None
    """JSON file for the figures."""


def main(arguments: Arguments) -> None:
    """Times every case and prints the tables."""
    torch = import_torch("the benchmark")
    if min(arguments.episodes, arguments.batch_size, *arguments.sensor_lengths) < 1:
        raise UserError("--episodes, --batch-size and --sensor-lengths must be at least 1")
    cores = len(os.sched_getaffinity(0))
    threads = arguments.threads or thread_counts(cores)
    console = make_console()
    conditions = {
        **machine(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "devices": [device.device_kind for device in jax.devices()],
        "batch_size": arguments.batch_size,
    }
    console.print(conditions)
    rates: list[Rate] = []
    memory: dict[int, int | None] = {}
    opening: dict[int, tuple[float, float]] = {}
    with scratch_folder(arguments.scratch) as scratch:
        for steps in arguments.sensor_lengths:
            console.print(f"{steps} sensor samples: writing and packing {arguments.episodes} episodes …")
            case = feeding_cases.make_case(scratch / str(steps), steps, arguments.episodes, arguments.seconds)
            rates += measure(case, arguments, threads, arguments.reference_workers or cores)
            memory[steps] = feeding_cases.peak_resident_bytes(
                case, batch_size=arguments.batch_size, threads=threads[0], num_batches=30
            )
        for number in arguments.opened:
            opening[number] = feeding_cases.opening_seconds(scratch / f"open-{number}", number)
    console.print(rates_table(rates))
    console.print(opening_table(opening))
    for steps, peak in memory.items():
        if peak is not None:
            console.print(
                f"peak memory of a process that reads batches of {steps} samples: {peak / 1e6:.0f} MB"
            )
    if arguments.out is not None:
        figures = {
            "conditions": conditions,
            "rates": [asdict(rate) for rate in rates],
            "peak_resident_bytes": memory,
            "opening_s": {
                number: {"open": alone, "open_and_check_sources": checked}
                for number, (alone, checked) in opening.items()
            },
        }
        arguments.out.write_text(json.dumps(figures, indent=2))


def thread_counts(cores: int) -> tuple[int, ...]:
    """Returns 1, 2, 4 … up to twice the number of processors."""
    counts = [1]
    while counts[-1] < 2 * cores:
        counts.append(2 * counts[-1])
    return tuple(counts)


def measure(case: Case, arguments: Arguments, threads: Sequence[int], workers: int) -> list[Rate]:
    """Times all sides on one set of episodes; the plain copy before and after, for the machine may change."""
    options = {"batch_size": arguments.batch_size, "seconds": arguments.measure_s}
    copies = [feeding_cases.copy_rate(case, **options)]
    fed = [
        feeding_cases.FEEDS[name](case, threads=count, **options)
        for name in arguments.feeds
        for count in threads
    ]
    copies.append(feeding_cases.copy_rate(case, **options))
    reference = feeding_cases.reference_rate(case, batch_size=8, workers=workers, seconds=arguments.measure_s)
    return [max(copies, key=lambda rate: rate.samples_per_s), *fed, reference]


def rates_table(rates: Sequence[Rate]) -> Table:
    """Tabulates the rates, each beside the plain copy and the reference at the same sensor length."""
    table = Table("sensor samples", "side", title="feeding, from the page cache", title_justify="left")
    for title in ("threads or workers", "samples/s", "batch MB/s", "of numpy copy", "reference's"):
        table.add_column(title, justify="right")
    for rate in rates:
        by_side = {other.side: other for other in rates if other.steps == rate.steps}
        table.add_row(
            str(rate.steps),
            rate.side,
            str(rate.workers),
            f"{rate.samples_per_s:.1f}",
            "" if rate.mb_per_s is None else f"{rate.mb_per_s:.0f}",
            f"{100 * rate.samples_per_s / by_side['numpy copy'].samples_per_s:.1f} %",
            f"{rate.samples_per_s / by_side['reference'].samples_per_s:.1f}x",
        )
    return table


def opening_table(opening: dict[int, tuple[float, float]]) -> Table:
    """Tabulates the times to open data sets."""
    table = Table("episodes", title="opening a packed data set", title_justify="left")
    table.add_column("ms", justify="right")
    table.add_column("ms, with a look for changed recordings", justify="right")
    for number, (alone, checked) in opening.items():
        table.add_row(str(number), f"{1000 * alone:.1f}", f"{1000 * checked:.1f}")
    return table


COMMAND = cli.Command("benchmarks.data", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
