"""`python -m experiments.benchmarks.data`: how fast training is fed, beside the PyTorch reference's way."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from rich.table import Table

from experiments import cli
from experiments.benchmarks.feeding_cases import (
    Feeding,
    FeedName,
    FeedTiming,
    peak_resident_bytes,
    time_opening,
)
from experiments.benchmarks.frame import Frame, FrameArguments, require_positive, scratch_folder, timing_table
from experiments.benchmarks.machine import conditions, processors
from experiments.benchmarks.timing import Timing
from vla_jax.optional_torch import import_torch

DESCRIPTION = """Records made-up episodes of the lab's sizes, packs them, and times from the page cache how many
training samples a second come: fed as training is (by 1 to N threads), as plain numpy copies of the same batches from
ordinary memory, and by the PyTorch reference's pattern (a DataLoader with workers; each sample loads its episode's
whole sensor file and one feature file). Then memory, and the time to open sets of 10, 100 and 1000 episodes. Needs the
`export` extra."""

MEMORY_BATCHES = 30


@dataclass(frozen=True, kw_only=True)
class Arguments(FrameArguments):
    """Options of the command."""

    rounds: int = 3
    """How often each side is timed, in turn with the others; the table shows medians."""
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
    """How long each is timed in all rounds together, at least."""
    scratch: Path | None = None
    """Where to write the episodes; a temporary folder by default."""


def main(arguments: Arguments) -> None:
    """Times every case and prints the tables."""
    require_positive(arguments, "rounds", "episodes", "batch_size", "sensor_lengths", "threads", "opened")
    import_torch("the benchmark")
    threads = arguments.threads or thread_counts(processors())
    devices = [device.device_kind for device in jax.devices()]
    described = conditions("numpy", "torch") | {"devices": devices, "batch_size": arguments.batch_size}
    frame = Frame(arguments, described)
    timings: list[FeedTiming] = []
    memory: dict[int, int | None] = {}
    opening: list[Timing] = []
    with scratch_folder(arguments.scratch) as scratch:
        for length in arguments.sensor_lengths:
            frame.say(f"{length} sensor samples: writing and packing {arguments.episodes} episodes …")
            feeding = Feeding(
                scratch / str(length), length, arguments.episodes, arguments.seconds, arguments.batch_size
            )
            timings += time_sides(feeding, arguments, threads)
            peak = memory[length] = peak_resident_bytes(
                feeding.workspace,
                batch_size=arguments.batch_size,
                threads=threads[0],
                num_batches=MEMORY_BATCHES,
            )
            if peak is not None:
                frame.say(
                    f"peak memory of a process that reads batches of {length} samples: {peak / 1e6:.0f} MB"
                )
        for number in arguments.opened:
            opening += time_opening(scratch / f"open-{number}", number, arguments.rounds)
    frame.finish(
        timings,
        rates_table(timings),
        timing_table(opening, title="opening a packed data set"),
        peak_resident_bytes=memory,
        opening=[timing.figures() for timing in opening],
    )


def thread_counts(cores: int) -> tuple[int, ...]:
    """Returns 1, 2, 4 … up to twice the number of processors."""
    counts = [1]
    while counts[-1] < 2 * cores:
        counts.append(2 * counts[-1])
    return tuple(counts)


def time_sides(feeding: Feeding, arguments: Arguments, threads: Sequence[int]) -> list[FeedTiming]:
    """Times a plain copy, all ways of feeding, and the reference on one set of episodes."""
    sides = [
        feeding.copies(),
        *(feeding.fed(feed, count) for feed in arguments.feeds for count in threads),
        feeding.reference(arguments.reference_workers or processors()),
    ]
    return feeding.time(sides, rounds=arguments.rounds, seconds=arguments.measure_s)


def rates_table(timings: Sequence[FeedTiming]) -> Table:
    """Tabulates the rates, each beside the plain copy and the reference at the same sensor length."""
    reference = {timing.case: timing.rate for timing in timings if timing.side == "reference"}
    return timing_table(
        timings,
        title="feeding, from the page cache",
        versus="vs numpy copy",
        columns={
            "threads or workers": lambda timing: str(timing.workers),
            "batch MB/s": lambda timing: "" if timing.mb_per_s is None else f"{timing.mb_per_s:.0f}",
            "vs reference": lambda timing: f"{timing.rate / reference[timing.case]:.1f}x",
        },
    )


COMMAND = cli.Command("benchmarks.data", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
