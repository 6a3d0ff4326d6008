"""`python -m experiments.benchmarks.heads`: our policy heads and the same in PyTorch, timed side by side."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax

from experiments import cli
from experiments.benchmarks.frame import Frame, FrameArguments, require_positive, timing_table
from experiments.benchmarks.machine import conditions, torch_beside_jax
from experiments.benchmarks.networks import CaseName, Size

if TYPE_CHECKING:
    from experiments.benchmarks.head_cases import HeadTiming

DESCRIPTION = """Builds the full-size heads in JAX and in PyTorch from one set of weights, checks that they agree, and
times both in one process, turn by turn: the training step (forward, backward, clip, AdamW) and inference (regression,
DDIM with 10 steps, DDPM with 100). The flow head, which the PyTorch side lacks, is timed alone, with 1 step and 10.
Needs the `export` extra."""


@dataclass(frozen=True, kw_only=True)
class Arguments(FrameArguments):
    """Options of the command."""

    cases: tuple[CaseName, ...] = ("train", "regression", "ddim", "ddpm", "flow1", "flow10")
    """What to time."""
    batch_sizes: tuple[int, ...] = (1, 64)
    """Batch sizes of inference."""
    train_batch_size: int | None = None
    """Batch size of the training step; by default 8 on a CPU, 64 on a GPU."""
    sensor_lengths: tuple[int, ...] = (65, 650)
    """Samples in a sensor window."""
    compile_torch: bool = True
    """Also time `torch.compile`."""
    bfloat16: bool = True
    """Also time bfloat16 weights in inference; on a GPU, training too is in bfloat16 on both sides."""
    size: Size = "full"
    """small: narrow layers, to try the benchmark out."""


def main(arguments: Arguments) -> None:
    """Times every case and prints the table."""
    require_positive(arguments, "rounds", "batch_sizes", "sensor_lengths")
    on_gpu = jax.default_backend() == "gpu"
    torch_beside_jax(on_gpu=on_gpu)
    # The cases import torch.
    from experiments.benchmarks import head_cases

    described = {
        "device": jax.devices()[0].device_kind,
        **conditions("jax", "torch"),
        "matmul_gflops": head_cases.matmul_rates(on_gpu=on_gpu),
    }
    frame = Frame(arguments, described)
    settings = head_cases.Settings(
        size=arguments.size,
        rounds=arguments.rounds,
        compile_torch=arguments.compile_torch,
        bfloat16=arguments.bfloat16,
        on_gpu=on_gpu,
    )
    timings: list[HeadTiming] = []
    for length in arguments.sensor_lengths:
        for case in arguments.cases:
            training_batch = arguments.train_batch_size or (64 if on_gpu else 8)
            for batch in (training_batch,) if case == "train" else arguments.batch_sizes:
                frame.say(f"{case}, batch {batch}, {length} sensor samples …")
                timings += head_cases.run_case(case, batch, length, settings)
    columns = {
        "first call s": lambda timing: f"{timing.first_call_s:.1f}",
        "GFLOP/s": lambda timing: f"{timing.flops / timing.median_s / 1e9:.0f}",
    }
    frame.finish(timings, timing_table(timings, versus="vs eager", columns=columns))


COMMAND = cli.Command("benchmarks.heads", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
