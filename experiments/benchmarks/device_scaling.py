"""One batch over several devices: what an update takes there, and that the losses do not depend on them."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from experiments.benchmarks.frame import timing_table
from experiments.benchmarks.timing import Timing
from experiments.benchmarks.training_sides import WARM_UP, Task, train_config, train_ours
from vla_jax.training.history import read_history
from vla_jax.training.log_window import LOSS, RATE

EQUAL_LOSSES = 1e-4
SAMPLES_PER_DEVICE = 8


@dataclass(frozen=True)
class Accelerators:
    """JAX's devices here. backend: cpu, gpu or tpu; kind: what they are called; count: how many."""

    backend: str
    kind: str
    count: int


@dataclass(frozen=True, kw_only=True)
class ScalingTiming(Timing):
    """Training on some devices; a round is an update.

    difference: largest to the first row's losses, relative to them.
    """

    devices: int
    fsdp: int
    simulated: bool
    difference: float


def look_at_devices() -> Accelerators:
    """Asks a process that ends at once, so that this one holds no device's memory."""
    script = (
        "import json, jax; here = jax.local_devices(); "
        "print(json.dumps([jax.default_backend(), here[0].device_kind, len(here)]))"
    )
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return Accelerators(*json.loads(done.stdout.splitlines()[-1]))


def compare_devices(
    task: Task, devices: Sequence[int], available: int, say: Callable[[str], None]
) -> list[ScalingTiming]:
    """Trains on growing numbers of devices, replicated and split.

    available: the machine's devices; where one of the numbers is larger, all are simulated on the CPU. task: its
    batch is replaced by one that divides over all numbers of devices.
    """
    task = dataclasses.replace(task, batch_size=SAMPLES_PER_DEVICE * max(devices))
    config = dataclasses.replace(train_config(task), log_every=1)
    timings: list[ScalingTiming] = []
    expected: np.ndarray | None = None
    simulated = max(devices) > available
    for number in devices:
        for fsdp in sorted({1, number}):
            environment = {}
            if simulated:
                flags = os.environ.get("XLA_FLAGS", "")
                environment = {
                    "JAX_PLATFORMS": "cpu",
                    "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={number}".strip(),
                }
            say(f"{number} device(s), fsdp {fsdp} …")
            options = ("--devices", str(number), "--fsdp", str(fsdp))
            history = read_history(train_ours(config, task.workspace, *options, **environment))
            losses, rates = history.curves[LOSS].values, history.curves[RATE]
            expected = losses if expected is None else expected
            seconds = task.batch_size / rates.values[rates.steps > WARM_UP]
            timings.append(
                ScalingTiming(
                    case="one batch",
                    side=f"{number}{' simulated' if simulated else ''}, fsdp {fsdp}",
                    seconds=tuple(seconds.tolist()),
                    amount=task.batch_size,
                    unit="samples",
                    devices=number,
                    fsdp=fsdp,
                    simulated=simulated,
                    difference=float(np.max(np.abs(losses - expected) / np.abs(expected))),
                )
            )
    worst = max(timing.difference for timing in timings)
    if worst > EQUAL_LOSSES:
        say(f"the losses differ by up to {worst:.1e}: they should not depend on the devices")
    return timings


def scaling_table(timings: Sequence[ScalingTiming]) -> Table:
    """Tabulates the comparison of devices."""
    table = timing_table(
        timings,
        title="one batch over several devices, small diffusion policy",
        columns={"largest difference of a loss": lambda timing: f"{timing.difference:.1e}"},
    )
    table.caption = "simulated devices share the processors: their time shows the overhead, not a gain"
    return table
