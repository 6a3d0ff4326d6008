"""`python -m experiments.benchmarks.serving`: a served policy with several clients, beside direct calls of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments import cli
from experiments.benchmarks.frame import Frame, FrameArguments, require_positive, scratch_folder, timing_table
from experiments.benchmarks.networks import HeadKind, Size
from vla_jax.optional_torch import require

DESCRIPTION = """Makes policies of random weights, serves each in a process of its own by `serve`, and times rounds of
requests with features and sensor from 1, 2, 4 and 8 clients, each of which asks again as soon as it is answered; and in
turn with them direct calls of `InsertionPolicy.predict` with one sample, in this process. Latency is from a request on
the host to its actions on the host. Needs the extra `serve`."""


@dataclass(frozen=True, kw_only=True)
class Arguments(FrameArguments):
    """Options of the command."""

    heads: tuple[HeadKind, ...] = ("regression", "diffusion")
    """Which policies; the diffusion policy denoises in 10 steps of DDIM."""
    clients: tuple[int, ...] = (1, 2, 4, 8)
    """Clients at a time."""
    requests: int = 40
    """Of each client, and direct calls, in a round."""
    max_batch: int = 8
    """Of the server."""
    sensor_length: int = 65
    """Rows in a sensor window."""
    size: Size = "full"
    """small: narrow layers, to try the benchmark out."""
    scratch: Path | None = None
    """Where to put the policies while it runs; by default where temporary files go."""


def main(arguments: Arguments) -> None:
    """Times every policy and prints the table."""
    require_positive(arguments, "rounds", "clients", "requests", "max_batch", "sensor_length")
    require("the benchmark", "websockets", "msgpack", extra="serve")
    from experiments.benchmarks.machine import conditions
    from experiments.benchmarks.serving_cases import LatencyTiming, measure, write_policy

    frame = Frame(arguments, conditions("jax", "websockets", "msgpack"))
    timings: list[LatencyTiming] = []
    with scratch_folder(arguments.scratch) as folder:
        for head in arguments.heads:
            frame.say(f"{head}: writing a policy of random weights, and starting its server …")
            run = write_policy(folder / head, head, arguments.sensor_length, arguments.size)
            timings += measure(
                head,
                run,
                clients=arguments.clients,
                requests=arguments.requests,
                rounds=arguments.rounds,
                max_batch=arguments.max_batch,
            )
    columns: dict[str, Callable[[LatencyTiming], str]] = {
        "p50 ms": lambda timing: f"{timing.p50_ms:.1f}",
        "p99 ms": lambda timing: f"{timing.p99_ms:.1f}",
        "batch": lambda timing: f"{timing.mean_batch:.1f}",
    }
    frame.finish(timings, timing_table(timings, versus="vs direct", columns=columns))


COMMAND = cli.Command("benchmarks.serving", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
