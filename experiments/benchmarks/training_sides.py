"""The sides of the training benchmark, each in processes of its own: PyTorch in several ways, and our command."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from experiments.benchmarks.networks import HeadKind, Size, policy_config
from experiments.benchmarks.torch_spec import TorchSpec, TrainingMeasurement
from experiments.benchmarks.workspace import Workspace
from vla_jax.errors import UserError
from vla_jax.storage import config_json
from vla_jax.training.config import TrainConfig
from vla_jax.training.history import read_history
from vla_jax.training.log_window import RATE, WAITING
from vla_jax.training.recipes import make_config

# Updates of ours that do not count: those for which batches were read ahead while the step was compiled.
WARM_UP = 10
LOG_EVERY = 5


@dataclasses.dataclass(frozen=True)
class Task:
    """What every side trains on what. seconds: longest time for one side of PyTorch; workers: its processes."""

    workspace: Workspace
    kind: HeadKind
    size: Size
    sensor_length: int
    batch_size: int
    updates: int
    seconds: float
    workers: int


def make_sides(task: Task, *, compile_torch: bool) -> dict[str, Callable[[], TrainingMeasurement]]:
    """Returns calls that train once, by the names of the table's rows."""
    sides: dict[str, Callable[[], TrainingMeasurement]] = {}
    for spec in torch_specs(task, compile_torch=compile_torch):
        reading = "reference files" if spec.reads == "files" else "packed data"
        name = f"{'torch.compile' if spec.compiled else 'torch eager'}, {reading}"
        sides[name] = partial(run_torch, spec)
    config = train_config(task)
    return {**sides, "vla-jax": partial(run_ours, config, task.workspace)}


def torch_specs(task: Task, *, compile_torch: bool) -> list[TorchSpec]:
    """Returns what PyTorch is to do, over the reference's data access and over packed data."""
    return [
        TorchSpec(
            root=str(task.workspace.root),
            reads=reads,
            kind=task.kind,
            size=task.size,
            sensor_length=task.sensor_length,
            batch_size=task.batch_size,
            updates=task.updates,
            seconds=task.seconds,
            workers=task.workers,
            compiled=compiled,
        )
        for reads in ("files", "packed")
        for compiled in ((False, True) if compile_torch else (False,))
    ]


def run_torch(spec: TorchSpec) -> TrainingMeasurement:
    """Trains once with PyTorch in its own process."""
    with tempfile.TemporaryDirectory(dir=spec.root) as folder:
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(dataclasses.asdict(spec)))
        done = run_process(
            "experiments.benchmarks.torch_training",
            str(path),
            JAX_PLATFORMS="cpu",  # It only reads configurations with JAX's packages.
        )
    return TrainingMeasurement(**json.loads(done.splitlines()[-1]))


def train_config(task: Task) -> TrainConfig:
    """Returns the reference's recipe with the benchmark's network: what the PyTorch sides train."""
    dataset = task.workspace.dataset()
    table = task.workspace.features(dataset)
    config = make_config("reference", table.spec, dataset.spec, head=task.kind, fusion="concat")
    network = policy_config(task.kind, task.sensor_length, task.size)
    never = 10**9
    return dataclasses.replace(
        config,
        policy=dataclasses.replace(network, vl_slots=table.num_slots),
        batch_size=task.batch_size,
        steps=WARM_UP + task.updates,
        log_every=LOG_EVERY,
        validate_every=never,
        checkpoint_every=never,
    )


def run_ours(config: TrainConfig, workspace: Workspace) -> TrainingMeasurement:
    """Runs `experiments.train` and returns what the run logged itself."""
    history = read_history(train_ours(config, workspace))
    rates, waiting = history.curves[RATE], history.curves[WAITING]
    updates = np.diff(rates.steps, prepend=0)
    timed = rates.steps > WARM_UP
    seconds = updates[timed] * config.batch_size / rates.values[timed]
    return TrainingMeasurement(
        update_s=float(seconds.sum() / updates[timed].sum()),
        data_wait_share=float((waiting.values[timed] * seconds).sum() / seconds.sum()),
        first_update_s=None,
        updates=int(updates[timed].sum()),
    )


def train_ours(config: TrainConfig, workspace: Workspace, *options: str, **environment: str) -> Path:
    """Trains with the command that users type, and returns the run's directory."""
    run = Path(tempfile.mkdtemp(dir=workspace.root, prefix="run-"))
    path = run.with_suffix(".json")
    path.write_text(config_json.to_json(config))
    inputs = (str(workspace.data), "--cache", str(workspace.cache))
    run_process(
        "experiments.train", *inputs, "--out", str(run), "--config", str(path), *options, **environment
    )
    return run


def run_process(module: str, *arguments: str, **environment: str) -> str:
    """Runs a module to its end and returns what it printed.

    Raises:
        UserError: it failed; the last line of what it said is in the message.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise UserError(f"{module} ended with status {done.returncode}: {said}")
    return done.stdout
