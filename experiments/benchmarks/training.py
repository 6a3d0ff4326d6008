"""`python -m experiments.benchmarks.training`: samples per second from recorded data to updated weights, ours beside
PyTorch."""

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
from rich.table import Table

from experiments import cli
from experiments.benchmarks.device_scaling import (
    ScalingTiming,
    compare_devices,
    look_at_devices,
    scaling_table,
)
from experiments.benchmarks.frame import Frame, FrameArguments, require_positive, scratch_folder, timing_table
from experiments.benchmarks.machine import conditions, torch_beside_jax
from experiments.benchmarks.networks import HeadKind, Size, policy_config
from experiments.benchmarks.recorded_episodes import EpisodeShape
from experiments.benchmarks.timing import Timing, in_turn
from experiments.benchmarks.torch_spec import TrainingMeasurement
from experiments.benchmarks.training_sides import Task, make_sides
from experiments.benchmarks.workspace import Workspace, make_workspace

DESCRIPTION = """Trains one network, with the same loss and optimizer, on the same episodes in several ways, each in
a process of its own: PyTorch over the reference's data access (for every sample its episode's whole sensor file and
one feature file), PyTorch over our packed data, either eager and compiled, and `python -m experiments.train`. So
the gains of the data's layout and of the training step show apart. Then it trains on 1, 2, 4 and 8 devices
(simulated where there are fewer), where the losses must be equal. Needs the `export` extra.

Files are read from the page cache: a disk would slow the reference's pattern further."""


@dataclass(frozen=True, kw_only=True)
class Arguments(FrameArguments):
    """Options of the command."""

    rounds: int = 1
    """How often each side trains, in turn with the others; the table shows medians."""
    model_types: tuple[HeadKind, ...] = ("diffusion",)
    """Policies to train."""
    sensor_lengths: tuple[int, ...] = (65, 650)
    """Rows in a sensor window."""
    size: Size = "full"
    """small: narrow layers, to try the benchmark out."""
    batch_size: int | None = None
    """Samples per update; by default 8 on a CPU, 256 on a GPU."""
    updates: int = 50
    """Updates timed on each side, after those that compile and fill the queues."""
    seconds: float = 300.0
    """Longest time for one side of PyTorch; the reference's data access can be very slow."""
    workers: int | None = None
    """Processes that read for PyTorch; by default one per processor, at most 8."""
    compile_torch: bool = True
    """Also time `torch.compile`."""
    episodes: int = 4
    """Episodes to write and train on."""
    episode_seconds: float = 18.0
    """Their length: 18 s have 99 recorded sensor windows (260 MB with 650 rows)."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of devices to compare, at --size small; all simulated on the CPU where there are fewer than the most."""
    device_updates: int = 20
    """Updates of that comparison."""
    scratch: Path | None = None
    """Where to write the episodes; a temporary folder by default."""


@dataclass(frozen=True, kw_only=True)
class TrainingTiming(Timing):
    """A call is one update. updates: timed in a round; the other fields are medians of the rounds."""

    data_wait_share: float
    first_update_s: float | None
    updates: int


def main(arguments: Arguments) -> None:
    """Times every side of every case and prints the tables."""
    require_positive(arguments, "rounds", "updates", "episodes", "devices", "device_updates")
    accelerators = look_at_devices()
    on_gpu = accelerators.backend == "gpu"
    torch_beside_jax(on_gpu=on_gpu)
    # The device's memory belongs to the processes that are timed, not to this one.
    jax.config.update("jax_platforms", "cpu")
    batch_size = arguments.batch_size or (256 if on_gpu else 8)
    workers = min(8, os.cpu_count() or 1) if arguments.workers is None else arguments.workers
    described = {
        "device": accelerators.kind,
        **conditions("jax", "torch"),
        "batch_size": batch_size,
        "workers": workers,
        "size": arguments.size,
        "episodes": arguments.episodes,
        "episode_seconds": arguments.episode_seconds,
    }
    frame = Frame(arguments, described)
    timings: list[TrainingTiming] = []
    scaling: list[ScalingTiming] = []

    def task(workspace: Workspace, kind: HeadKind, length: int, size: Size, updates: int) -> Task:
        return Task(
            workspace=workspace,
            kind=kind,
            size=size,
            sensor_length=length,
            batch_size=batch_size,
            updates=updates,
            seconds=arguments.seconds,
            workers=workers,
        )

    with scratch_folder(arguments.scratch) as root:
        for length in arguments.sensor_lengths:
            frame.say(f"writing {arguments.episodes} episodes with windows of {length} rows …")
            workspace = make_training_workspace(root / f"t{length}", arguments, length, arguments.size)
            for kind in arguments.model_types:
                chosen = task(workspace, kind, length, arguments.size, arguments.updates)
                timings += time_sides(chosen, arguments, frame.say)
        if arguments.devices:
            frame.say("several devices …")
            length = min(arguments.sensor_lengths)
            workspace = make_training_workspace(root / "devices", arguments, length, "small")
            chosen = task(workspace, "diffusion", length, "small", arguments.device_updates)
            scaling = compare_devices(chosen, arguments.devices, accelerators.count, frame.say)
    tables = [training_table(timings)] + ([scaling_table(scaling)] if scaling else [])
    frame.finish(timings, *tables, devices=[timing.figures() for timing in scaling])


def make_training_workspace(root: Path, arguments: Arguments, length: int, size: Size) -> Workspace:
    """Writes what all sides read, feature files of all slots for the reference's access included."""
    from experiments.benchmarks.reference_feeding import write_feature_files

    shape = EpisodeShape(seconds=arguments.episode_seconds, image_size=(32, 18), window_rows=length)
    width = policy_config("diffusion", length, size).vl_dim
    workspace = make_workspace(root, arguments.episodes, shape, width=width, workers=1)
    write_feature_files(workspace, pooled=False)
    return workspace


def time_sides(task: Task, arguments: Arguments, say: Callable[[str], None]) -> list[TrainingTiming]:
    """Trains on all sides in turn."""
    case = f"{task.kind} b{task.batch_size} t{task.sensor_length}"

    def run(side: str, train: Callable[[], TrainingMeasurement]) -> TrainingMeasurement:
        say(f"{case}: {side} …")
        return train()

    sides = make_sides(task, compile_torch=arguments.compile_torch)
    measured = in_turn({side: partial(run, side, train) for side, train in sides.items()}, arguments.rounds)
    timings: list[TrainingTiming] = []
    for side, rounds in measured.items():
        first = [run.first_update_s for run in rounds if run.first_update_s is not None]
        timings.append(
            TrainingTiming(
                case=case,
                side=side,
                seconds=tuple(run.update_s for run in rounds),
                amount=task.batch_size,
                unit="samples",
                data_wait_share=statistics.median(run.data_wait_share for run in rounds),
                first_update_s=statistics.median(first) if first else None,
                updates=rounds[0].updates,
            )
        )
    return timings


def training_table(timings: Sequence[TrainingTiming]) -> Table:
    """Tabulates all sides, each with its factor over the reference's data access in eager PyTorch."""
    return timing_table(
        timings,
        title="from data to updated weights",
        columns={
            "waits for data": lambda timing: f"{100 * timing.data_wait_share:.1f} %",
            "first update s": lambda timing: (
                "–" if timing.first_update_s is None else f"{timing.first_update_s:.1f}"
            ),
            "updates": lambda timing: str(timing.updates),
        },
    )


COMMAND = cli.Command("benchmarks.training", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
