"""`python -m experiments.benchmarks.heads`: our policy heads and the same in PyTorch, timed side by side."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import jax
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.benchmarks import head_cases
from experiments.benchmarks.timing import machine
from vla_jax.errors import UserError
from vla_jax.optional_torch import import_torch

DESCRIPTION = """Builds the full-size heads in JAX and in PyTorch from one set of weights, checks that they agree, and
times both in one process, turn by turn: the training step (forward, backward, clip, AdamW) and inference (regression,
DDIM with 10 steps, DDPM with 100). Needs the `export` extra."""

CaseName = Literal["train", "regression", "ddim", "ddpm"]


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    cases: tuple[CaseName, ...] = ("train", "regression", "ddim", "ddpm")
    """What to time."""
    batch_sizes: tuple[int, ...] = (1, 64)
    """Batch sizes of inference."""
    train_batch_size: int | None = None
    """Batch size of the training step; by default 8 on a CPU, 64 on a GPU."""
    sensor_lengths: tuple[int, ...] = (65, 650)
    """Samples in a sensor window."""
    rounds: int = 5
    """How often each side is timed; the table shows medians."""
    compile_torch: bool = True
    """Also time `torch.compile`."""
    bfloat16: bool = True
    """Also time bfloat16 weights in inference; on a GPU, training too is in bfloat16 on both sides."""
    size: head_cases.Size = "full"
    """small: narrow layers, to try the benchmark out."""
    out: Path | None = None
    """JSON file for the figures."""


def main(arguments: Arguments) -> None:
    """Times every case and prints the table."""
    if arguments.rounds < 1:
        raise UserError(f"rounds is {arguments.rounds}; it must be at least 1")
    torch = import_torch("the benchmark")
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise UserError(
            "JAX sees a GPU and PyTorch does not; install a CUDA build of torch, or set JAX_PLATFORMS=cpu"
        )
    # Wide enough for the table, also where the output is no terminal.
    console = Console(width=120)
    conditions = {
        "device": jax.devices()[0].device_kind,
        **machine(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "matmul_gflops": head_cases.matmul_rates(on_gpu),
    }
    console.print(conditions)
    settings = head_cases.Settings(
        size=arguments.size,
        rounds=arguments.rounds,
        compile_torch=arguments.compile_torch,
        bfloat16=arguments.bfloat16,
        on_gpu=on_gpu,
    )
    results = []
    table = Table("case", "side", "median ms", "best ms", "first call s", "vs eager", "GFLOP/s")
    for length in arguments.sensor_lengths:
        for name in arguments.cases:
            training_batch = arguments.train_batch_size or (64 if on_gpu else 8)
            for batch in (training_batch,) if name == "train" else arguments.batch_sizes:
                console.print(f"{name}, batch {batch}, {length} sensor samples …")
                timings = head_cases.run_case(name, batch, length, settings)
                results += [asdict(timing) for timing in timings]
                eager = next(timing.median_s for timing in timings if timing.side == "torch eager")
                for timing in timings:
                    table.add_row(
                        f"{name} b{batch} t{length}",
                        timing.side,
                        f"{1e3 * timing.median_s:.2f}",
                        f"{1e3 * timing.best_s:.2f}",
                        f"{timing.first_call_s:.1f}",
                        f"{eager / timing.median_s:.2f}x",
                        f"{timing.flops / timing.median_s / 1e9:.0f}",
                    )
    console.print(table)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"conditions": conditions, "results": results}, indent=2))


COMMAND = cli.Command("benchmarks.heads", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
