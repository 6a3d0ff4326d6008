"""`python -m experiments.benchmarks.training`: samples per second from recorded data to updated weights, ours beside
PyTorch."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.benchmarks.head_cases import Size, policy_config
from experiments.benchmarks.recorded_episodes import EpisodeShape, write_episodes
from experiments.benchmarks.timing import machine, scratch_folder
from feature_cache.store import ShardWriter
from vla_jax.contracts.metric_names import LOSS, RATE, WAITING
from vla_jax.contracts.provenance import Provenance
from vla_jax.dataset.feature_table import FeatureTable, record_keys
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.dataset.preparation import PrepareOptions, prepare
from vla_jax.errors import UserError
from vla_jax.optional_torch import import_torch
from vla_jax.storage import config_json
from vla_jax.training.config import TrainConfig
from vla_jax.training.history import read_history
from vla_jax.training.recipes import make_config

DESCRIPTION = """Trains one network, with the same loss and optimizer, on the same episodes in several ways, each in
a process of its own: PyTorch over the reference's data access (for every sample its episode's whole sensor file and
one feature file), PyTorch over our packed data, either eager and compiled, and `python -m experiments.train`. So
the gains of the data's layout and of the training step show apart. Then it trains on 1, 2, 4 and 8 devices
(simulated where there are fewer), where the losses must be equal. Needs the `export` extra.

Files are read from the page cache: a disk would slow the reference's pattern further."""

CaseModel = Literal["diffusion", "regression"]
# Updates of ours that do not count: those for which batches were read ahead while the step was compiled.
WARM_UP = 10
LOG_EVERY = 5
EQUAL_LOSSES = 1e-4


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    model_types: tuple[CaseModel, ...] = ("diffusion",)
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
    out: Path | None = None
    """JSON file for the figures."""


@dataclass(frozen=True)
class Accelerators:
    """JAX's devices here. backend: cpu, gpu or tpu; kind: what they are called; count: how many."""

    backend: str
    kind: str
    count: int


@dataclass(frozen=True)
class Timing:
    """One side of one case."""

    case: str
    side: str
    samples_per_second: float
    data_wait_share: float
    first_update_s: float | None
    updates: int


@dataclass(frozen=True)
class Scaling:
    """Training on some devices. difference: largest to the first row's losses, relative to them."""

    devices: int
    fsdp: int
    simulated: bool
    step_ms: float
    difference: float


@dataclass(frozen=True)
class Workspace:
    """Episodes in every form that a side reads."""

    data: Path
    cache: Path
    feature_files: Path


def main(arguments: Arguments) -> None:
    """Times every side of every case and prints the tables."""
    torch = import_torch("the benchmark")
    for name in ("updates", "episodes", "device_updates"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    accelerators = look_at_devices()
    on_gpu = accelerators.backend == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise UserError("JAX sees a GPU and PyTorch does not; install a CUDA build of torch")
    # The device's memory belongs to the processes that are timed, not to this one.
    jax.config.update("jax_platforms", "cpu")
    batch_size = arguments.batch_size or (256 if on_gpu else 8)
    workers = min(8, os.cpu_count() or 1) if arguments.workers is None else arguments.workers
    console = Console(width=130)
    conditions = {
        "device": accelerators.kind,
        **machine(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "batch_size": batch_size,
        "workers": workers,
        "size": arguments.size,
        "episodes": arguments.episodes,
        "episode_seconds": arguments.episode_seconds,
    }
    console.print(conditions)
    timings: list[Timing] = []
    scaling: list[Scaling] = []
    with scratch_folder(arguments.scratch) as root:
        for length in arguments.sensor_lengths:
            console.print(f"writing {arguments.episodes} episodes with windows of {length} rows …")
            vl_dim = policy_config("diffusion", length, arguments.size).vl_dim
            workspace = make_workspace(root / f"t{length}", arguments, length, vl_dim)
            for model_type in arguments.model_types:
                case = f"{model_type} b{batch_size} t{length}"
                sides = torch_sides(arguments, workspace, model_type, length, batch_size, workers)
                for side, spec in sides.items():
                    console.print(f"{case}: {side} …")
                    timings.append(Timing(case=case, side=side, **run_torch(spec, root)))
                console.print(f"{case}: vla-jax …")
                config = train_config(model_type, length, arguments.size, workspace, batch_size)
                config = dataclasses.replace(config, steps=WARM_UP + arguments.updates, log_every=LOG_EVERY)
                timings.append(Timing(case=case, side="vla-jax", **run_ours(config, workspace, root)))
        if arguments.devices:
            console.print("several devices …")
            length = min(arguments.sensor_lengths)
            small = make_workspace(
                root / "devices", arguments, length, policy_config("diffusion", length, "small").vl_dim
            )
            scaling = compare_devices(arguments, small, length, root, console, accelerators.count)
    console.print(timing_table(timings))
    if scaling:
        console.print(scaling_table(scaling))
    if arguments.out is not None:
        figures = {
            "conditions": conditions,
            "results": [dataclasses.asdict(timing) for timing in timings],
            "devices": [dataclasses.asdict(entry) for entry in scaling],
        }
        arguments.out.write_text(json.dumps(figures, indent=2))


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


def make_workspace(root: Path, arguments: Arguments, length: int, vl_dim: int) -> Workspace:
    """Writes episodes, packs them and fills a feature cache and the reference's feature files with random numbers."""
    from experiments.benchmarks.reference_loader import write_feature_files

    # Only the pictures' identity counts here: their features are made up.
    shape = EpisodeShape(seconds=arguments.episode_seconds, image_size=(32, 18), window_rows=length)
    write_episodes(root / "episodes", arguments.episodes, shape)
    workspace = Workspace(root / "data", root / "cache", root / "features")
    options = PrepareOptions(val_fraction=0.0, sensor_window_size=length)
    dataset = prepare([str(root / "episodes")], workspace.data, options).dataset
    provenance = Provenance("0" * 64, "made up", None, {}, "0" * 64)
    writer = ShardWriter(workspace.cache, provenance)
    required = dataset.required_records()
    rng = np.random.default_rng(0)
    for index, key in zip(required, record_keys(dataset, required, provenance), strict=True):
        slots = provenance.grid**2 * len(dataset.records[int(index)].images) + 1
        writer.add(key, rng.standard_normal((slots, vl_dim), np.float32))
    writer.flush()
    write_feature_files(FeatureTable.open(dataset, workspace.cache), required, workspace.feature_files)
    return workspace


def torch_sides(
    arguments: Arguments, workspace: Workspace, model_type: str, length: int, batch_size: int, workers: int
) -> dict[str, dict[str, Any]]:
    """Returns what PyTorch is to do, by the names of the table's rows."""
    sides = {}
    for reads, reading in (("files", "reference files"), ("packed", "packed data")):
        for compiled in (False, True) if arguments.compile_torch else (False,):
            name = f"{'torch.compile' if compiled else 'torch eager'}, {reading}"
            sides[name] = {
                "data": str(workspace.data),
                "cache": str(workspace.cache),
                "feature_files": str(workspace.feature_files),
                "reads": reads,
                "model_type": model_type,
                "size": arguments.size,
                "sensor_length": length,
                "batch_size": batch_size,
                "updates": arguments.updates,
                "seconds": arguments.seconds,
                "workers": workers,
                "compiled": compiled,
            }
    return sides


def run_torch(spec: dict[str, Any], root: Path) -> dict[str, Any]:
    """Runs one side of PyTorch in its own process and returns the fields of a `Timing`."""
    path = root / "spec.json"
    path.write_text(json.dumps(spec))
    done = run_process(
        "experiments.benchmarks.torch_training",
        str(path),
        JAX_PLATFORMS="cpu",  # It only reads configurations with JAX's packages.
    )
    result = json.loads(done.splitlines()[-1])
    del result["last_loss"]
    return result


def train_config(
    model_type: CaseModel, length: int, size: Size, workspace: Workspace, batch_size: int
) -> TrainConfig:
    """Returns the reference's recipe with the benchmark's network: what the PyTorch sides train."""
    dataset = PackedDataset.open(workspace.data)
    table = FeatureTable.open(dataset, workspace.cache)
    config = make_config("reference", table.spec, dataset.spec, head=model_type, fusion="concat")
    network = policy_config(model_type, length, size)
    policy = dataclasses.replace(network, vl_slots=table.num_slots)
    never = 10**9
    return dataclasses.replace(
        config, policy=policy, batch_size=batch_size, validate_every=never, checkpoint_every=never
    )


def run_ours(
    config: TrainConfig, workspace: Workspace, root: Path, *options: str, **environment: str
) -> dict[str, Any]:
    """Runs `experiments.train` and returns the fields of a `Timing`, from what the run logged itself."""
    run = train_ours(config, workspace, root, *options, **environment)
    history = read_history(run)
    rates, waiting = history.curves[RATE], history.curves[WAITING]
    updates = np.diff(rates.steps, prepend=0)
    timed = rates.steps > WARM_UP
    seconds = updates[timed] * config.batch_size / rates.values[timed]
    return {
        "samples_per_second": float(updates[timed].sum() * config.batch_size / seconds.sum()),
        "data_wait_share": float((waiting.values[timed] * seconds).sum() / seconds.sum()),
        "first_update_s": None,
        "updates": int(updates[timed].sum()),
    }


def train_ours(
    config: TrainConfig, workspace: Workspace, root: Path, *options: str, **environment: str
) -> Path:
    """Trains with the command that users type, and returns the run's directory."""
    run = Path(tempfile.mkdtemp(dir=root, prefix="run-"))
    path = run.with_suffix(".json")
    path.write_text(config_json.to_json(config))
    arguments = (
        str(workspace.data),
        "--cache",
        str(workspace.cache),
        "--out",
        str(run),
        "--config",
        str(path),
    )
    run_process("experiments.train", *arguments, *options, **environment)
    return run


def compare_devices(
    arguments: Arguments, workspace: Workspace, length: int, root: Path, console: Console, available: int
) -> list[Scaling]:
    """Trains the small diffusion policy, in float32, on growing numbers of devices, replicated and split.

    available: the machine's devices; where one of the numbers is larger, all are simulated on the CPU.
    """
    batch_size = 8 * max(arguments.devices)
    config = train_config("diffusion", length, "small", workspace, batch_size)
    config = dataclasses.replace(config, steps=WARM_UP + arguments.device_updates, log_every=1)
    rows: list[Scaling] = []
    expected: np.ndarray | None = None
    simulated = max(arguments.devices) > available
    for devices in arguments.devices:
        for fsdp in sorted({1, devices}):
            environment = {}
            if simulated:
                flags = os.environ.get("XLA_FLAGS", "")
                environment = {
                    "JAX_PLATFORMS": "cpu",
                    "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
                }
            options = ("--devices", str(devices), "--fsdp", str(fsdp))
            console.print(f"{devices} device(s), fsdp {fsdp} …")
            history = read_history(train_ours(config, workspace, root, *options, **environment))
            losses = history.curves[LOSS].values
            expected = losses if expected is None else expected
            rates = history.curves[RATE]
            rate = float(np.median(rates.values[rates.steps > WARM_UP]))
            rows.append(
                Scaling(
                    devices=devices,
                    fsdp=fsdp,
                    simulated=simulated,
                    step_ms=1e3 * batch_size / rate,
                    difference=float(np.max(np.abs(losses - expected) / np.abs(expected))),
                )
            )
    worst = max(row.difference for row in rows)
    if worst > EQUAL_LOSSES:
        console.print(f"the losses differ by up to {worst:.1e}: they should not depend on the devices")
    return rows


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


def timing_table(timings: Sequence[Timing]) -> Table:
    """Returns all sides, each with its factor over the reference's data access in eager PyTorch."""
    table = Table(title="from data to updated weights")
    for name in ("case", "side"):
        table.add_column(name, no_wrap=True)
    for name in ("samples/s", "ms/update", "waits for data", "vs the first", "first update", "updates"):
        table.add_column(name, justify="right")
    first = {}
    for timing in timings:
        rate = timing.samples_per_second
        first.setdefault(timing.case, rate)
        batch_size = int(timing.case.split(" b")[1].split()[0])
        table.add_row(
            timing.case,
            timing.side,
            f"{rate:.1f}",
            f"{1e3 * batch_size / rate:.1f}",
            f"{100 * timing.data_wait_share:.1f} %",
            f"{rate / first[timing.case]:.2f}x",
            "–" if timing.first_update_s is None else f"{timing.first_update_s:.1f} s",
            str(timing.updates),
        )
    return table


def scaling_table(rows: Sequence[Scaling]) -> Table:
    """Returns the comparison of devices, with the time relative to the first row's."""
    table = Table("devices", "fsdp", title="one batch over several devices, small diffusion policy")
    for name in ("ms/update", "vs the first", "largest difference of a loss"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row.devices}{' simulated' if row.simulated else ''}",
            str(row.fsdp),
            f"{row.step_ms:.1f}",
            f"{row.step_ms / rows[0].step_ms:.2f}x",
            f"{row.difference:.1e}",
        )
    table.caption = "simulated devices share the processors: their time shows the overhead, not a gain"
    return table


if __name__ == "__main__":
    cli.run(main, Arguments, name="benchmarks.training", description=DESCRIPTION)
