"""`python -m experiments.benchmarks.first_action`: from a fresh process to a policy's first action."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from experiments import cli
from experiments.benchmarks.frame import Frame, FrameArguments, require_positive, scratch_folder, timing_table
from experiments.benchmarks.networks import HeadKind, Size
from experiments.benchmarks.timing import Timing, in_turn

DESCRIPTION = """Makes policies of random weights, as checkpoints and as bundles, and times processes of their own from
their start to the first action of one sample: with a folder of compiled programs that an earlier process has filled
(JAX_COMPILATION_CACHE_DIR), and without one. Processor time is of all threads; on a busy machine it says more than the
clock. Files are read from the page cache."""

CHECKPOINT = """
import sys
from vla_jax import InsertionPolicy
policy = InsertionPolicy.from_checkpoint(sys.argv[1])
policy.infer(policy.example())
print("acted", flush=True)
"""
BUNDLE = """
import sys
sys.path.insert(0, sys.argv[1])
from run import load
policy = load(sys.argv[1])
policy.predict(**policy.example())
print("acted", flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Arguments(FrameArguments):
    """Options of the command."""

    heads: tuple[HeadKind, ...] = ("regression", "diffusion")
    """Which policies; the diffusion policy denoises in 10 steps of DDIM."""
    sensor_length: int = 65
    """Rows in a sensor window."""
    size: Size = "full"
    """small: narrow layers, to try the benchmark out."""
    scratch: Path | None = None
    """Where to put the policies while it runs; by default where temporary files go."""


@dataclass(frozen=True, kw_only=True)
class ProcessTiming(Timing):
    """processor_s: median of the rounds, of all threads until the process ended."""

    processor_s: float


def main(arguments: Arguments) -> None:
    """Times every policy and prints the table."""
    require_positive(arguments, "rounds", "sensor_length")
    from experiments.benchmarks.machine import conditions
    from experiments.benchmarks.serving_cases import write_policy
    from vla_jax.bundle.writing import write_bundle
    from vla_jax.policy.insertion_policy import InsertionPolicy

    frame = Frame(arguments, conditions("jax", "flax", "orbax-checkpoint"))
    timings: list[ProcessTiming] = []
    with scratch_folder(arguments.scratch) as folder:
        for head in arguments.heads:
            frame.say(f"{head}: writing a policy of random weights, and its bundle …")
            run = write_policy(folder / head, head, arguments.sensor_length, arguments.size)
            bundle = folder / f"{head}-bundle"
            write_bundle(InsertionPolicy.from_checkpoint(run), bundle)
            timings += time_processes(
                head, {CHECKPOINT: run, BUNDLE: bundle}, folder / "cache", arguments.rounds
            )
    columns = {"processor s": lambda timing: f"{timing.processor_s:.2f}"}
    frame.finish(timings, timing_table(timings, columns=columns))


def time_processes(case: str, programs: Mapping[str, Path], cache: Path, rounds: int) -> list[ProcessTiming]:
    """Times each program with and without a filled cache, in turn. programs: source → what it is called with."""
    names = {CHECKPOINT: "checkpoint", BUNDLE: "bundle"}
    sides = {}
    for program, path in programs.items():
        sides[f"{names[program]}, compiled anew"] = partial(run_process, program, path, None)
        sides[f"{names[program]}, compiled before"] = partial(run_process, program, path, cache)
        run_process(program, path, cache)
    return [_timing(case, side, done) for side, done in in_turn(sides, rounds).items()]


def run_process(program: str, path: Path, cache: Path | None) -> tuple[float, float]:
    """Returns the seconds from a process's start to its first action, and its processor time. cache: None: without."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    if "JAX_PLATFORMS" in os.environ:
        environment["JAX_PLATFORMS"] = os.environ["JAX_PLATFORMS"]
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    before, begun = _of_children(), time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        seconds = time.perf_counter() - begun
    if said != "acted\n":
        raise RuntimeError(f"the process of {path} ended with status {process.returncode}")
    return seconds, _of_children() - before


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _timing(case: str, side: str, rounds: Sequence[tuple[float, float]]) -> ProcessTiming:
    return ProcessTiming(
        case=case,
        side=side,
        seconds=tuple(seconds for seconds, _ in rounds),
        amount=1,
        unit="starts",
        processor_s=sorted(processor for _, processor in rounds)[len(rounds) // 2],
    )


COMMAND = cli.Command("benchmarks.first_action", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
