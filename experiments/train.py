"""`python -m experiments.train DATA --cache CACHE --out RUN`: trains a policy on all local devices."""

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments import cli
from experiments.console import make_console
from experiments.data import open_dataset
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.heads.action_head import head_kinds
from vla_jax.models.config import FusionStrategy
from vla_jax.policy.artifact import PolicyArtifact, load_policy
from vla_jax.policy.checkpoints import checkpoint_steps, read_metadata, resolve_checkpoint
from vla_jax.storage import config_json
from vla_jax.training.checkpoint import saved_config
from vla_jax.training.config import Rewarm, Schedule, TrainConfig
from vla_jax.training.devices import refuse_silent_cpu
from vla_jax.training.feeding import FeedMode
from vla_jax.training.loop import train
from vla_jax.training.optimizer import make_schedule
from vla_jax.training.processes import is_main_process, join_processes
from vla_jax.training.recipes import RecipeName, make_config
from vla_jax.training.sharding import make_mesh
from vla_jax.training.wandb_sink import require_wandb

DESCRIPTION = """Trains a policy head on the packed data set DATA with the vision-language features in CACHE.

Every option that is not given takes the recipe's value; the whole configuration is written to RUN/config.json."""


OPTIMIZER_OPTIONS = ("lr", "sensor_lr", "min_lr", "schedule", "warmup_ratio", "hold_ratio")
TRAINING_OPTIONS = (
    "batch_size",
    "grad_accum_steps",
    "sensor_loss_weight",
    "sensor_dropout",
    "sensor_noise",
    "feature_noise",
    "ema_decay",
    "seed",
)
# What a resumed run may change: how long it goes on and how often it reports.
SCHEDULE_OPTIONS = ("steps", "validate_every", "checkpoint_every", "log_every")


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Packed data set, written by `python -m experiments.prepare`."""
    cache: Path
    """Feature cache, written by `python -m experiments.export`."""
    out: Path
    """Run directory to write: configuration, checkpoints and logs."""
    recipe: RecipeName | None = None
    """frozen (the default): full-size heads for features of a frozen backbone. small: heads that train in minutes on
    a CPU.
    reference: full-size, with every deviation from the PyTorch reference switched off. small_reference: the same at
    the sizes of small. debug: tiny, for tests.
    A resumed run keeps the configuration it started with."""
    config: Path | None = None
    """JSON configuration to start from instead of a recipe, for instance another run's config.json."""
    init_from: Path | None = None
    """Run, checkpoint or imported reference whose weights and normalisation a new run begins with. Its network is
    kept, and the recipe says how to train it."""
    model_type: Literal[head_kinds()] | None = None
    """regression (the default): one pass predicts the chunk. diffusion: the chunk is denoised in several steps."""
    fusion_strategy: FusionStrategy | None = None
    """How sensor and vision-language features become the condition: concat by default; none leaves the sensor out."""
    sensor_enabled: bool = True
    """Whether the policy reads the sensor; --no-sensor-enabled is the same as --fusion-strategy none."""
    steps: int | None = None
    """Optimizer updates."""
    epochs: float | None = None
    """Passes over the training samples, instead of --steps."""
    batch_size: int | None = None
    """Samples per update, over all devices."""
    grad_accum_steps: int | None = None
    """Parts in which an update's gradient is computed, to save memory."""
    lr: float | None = None
    """Peak learning rate of the action expert."""
    sensor_lr: float | None = None
    """Peak learning rate of the sensor encoder."""
    min_lr: float | None = None
    """Learning rate at the end of the cosine."""
    schedule: Schedule | None = None
    """trapezoid (the default): warm-up, hold, cosine. cosine: without hold. constant: the peak rate throughout."""
    sched_on: Literal["step", "epoch"] = "step"
    """Whether the learning rate changes with every update or once an epoch."""
    warmup_ratio: float | None = None
    """Share of the updates in which the learning rate rises."""
    hold_ratio: float | None = None
    """Share of the updates at the peak learning rate."""
    rewarm: bool = False
    """With --resume: warm up again, from the rate at which the run stopped to the peak, over the updates left."""
    sensor_loss_weight: float | None = None
    """Weight in the loss of samples with sensor, relative to those without."""
    sensor_dropout: float | None = None
    """Share of samples whose sensor is hidden while training."""
    sensor_noise: float | None = None
    """Standard deviation of the noise added to normalised sensor windows in training."""
    feature_noise: float | None = None
    """Standard deviation of the noise added to normalised features in training."""
    ema_decay: float | None = None
    """Decay of the averaged weights that evaluation uses; 0 turns averaging off."""
    diffusion_timesteps: int | None = None
    """Steps of the diffusion schedule."""
    vlm_reuse_count: int | None = None
    """Control ticks that share one camera instant; the data set fixes it, and another number is refused."""
    remat: bool = False
    """Recompute activations in the backward pass: less memory, about a third more arithmetic."""
    seed: int | None = None
    """Seeds initial weights, data order, dropout and noise."""
    validate_every: int | None = None
    """Updates between two validations on held-out episodes."""
    checkpoint_every: int | None = None
    """Updates between two checkpoints."""
    log_every: int | None = None
    """Updates between two log lines."""
    features: str | None = None
    """Which features of the cache to use, when it holds several kinds; `export` prints the name."""
    allow_missing: bool = False
    """Train on the samples whose features the cache has, and say how many that leaves."""
    feed: FeedMode = "auto"
    """How batches reach the devices. host: made by threads and sent. device: the whole data set lives in device
    memory and batches are gathered there. auto: device on accelerators, as far as memory goes."""
    devices: int | None = None
    """Number of local devices; all by default."""
    fsdp: int = 1
    """Devices over which parameters and optimizer state are split."""
    distributed: bool = False
    """Train together with the same command in other processes, on one or more hosts that share RUN's directory. Who
    they are comes from SLURM, Open MPI or the JAX_COORDINATOR_ADDRESS variables, else from the next three."""
    coordinator: str | None = None
    """HOST:PORT of process 0."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0."""
    resume: bool = False
    """Continue RUN from its newest checkpoint, or start it when there is none."""
    wandb: bool = False
    """Send the metrics to Weights & Biases too; WANDB_MODE=offline keeps them in RUN/wandb. Needs the extra `wandb`."""


def main(arguments: Arguments) -> None:
    """Trains one policy and says where it is."""
    if arguments.wandb:
        require_wandb()
    if arguments.distributed:
        join_processes(arguments.coordinator, arguments.num_processes, arguments.process_id)
    refuse_silent_cpu()
    dataset = open_dataset(arguments.data)
    resuming = arguments.resume and bool(checkpoint_steps(arguments.out))
    resumed = resolve_checkpoint(arguments.out) if resuming else None
    table = FeatureTable.open(
        dataset,
        arguments.cache,
        features=features_to_use(arguments, resumed),
        allow_missing=arguments.allow_missing,
    )
    initial = None
    if arguments.init_from is not None and resumed is None:
        initial = load_policy(arguments.init_from)
    config = configuration(arguments, dataset, table, resumed, initial)
    mesh = make_mesh(arguments.devices, arguments.fsdp)
    console = make_console(stderr=True, quiet=not is_main_process())
    if table.num_missing:
        console.print(table.missing_note())
    console.print(
        f"{config.policy.head.kind} policy, fusion {config.policy.fusion.strategy}, "
        f"{table.num_slots} feature slots of width {table.width}"
    )
    result = train(
        config,
        dataset,
        table,
        arguments.out,
        mesh=mesh,
        resume=arguments.resume,
        initial=initial,
        feed=arguments.feed,
        wandb=arguments.wandb,
        announce=console.print,
    )
    if not is_main_process():
        return
    if result.interrupted:
        console.print(f"stopped and saved at step {result.step} of {config.steps}; continue with:")
        print(f"python -m experiments.train {shlex.join(_resume_arguments(sys.argv[1:]))}")
        return
    held_out = "; ".join(
        f"{name.removeprefix('validation/')} {value:.5f}"
        for name, value in result.metrics.items()
        if name.startswith("validation/")
    )
    print(f"trained {result.step} updates, held-out {held_out or 'episodes: none'}")
    print(f"evaluate with: python -m experiments.evaluate {arguments.out} {arguments.data} "
          f"--cache {arguments.cache} --out REPORT")  # fmt: skip


def features_to_use(arguments: Arguments, resumed: Path | None) -> str | None:
    """Returns the name of the features to train on: those of the resumed run, else what was asked for.

    Raises:
        UserError: the resumed run was trained on others than those asked for.
    """
    if resumed is None:
        return arguments.features
    digest = read_metadata(resumed).identity.features.get("digest")
    if digest is None:
        raise UserError(f"{resumed} was imported, not trained here: there is no training to resume")
    if arguments.features is not None and not digest.startswith(arguments.features):
        raise UserError(
            f"--resume continues {arguments.out}, which was trained on the features {digest[:16]}, not "
            f"{arguments.features}; leave --features out or start another run"
        )
    return digest[:16]


def configuration(
    arguments: Arguments,
    dataset: PackedDataset,
    table: FeatureTable,
    resumed: Path | None,
    initial: PolicyArtifact | None,
) -> TrainConfig:
    """Returns the configuration to begin with, with the given options put in.

    That is the resumed checkpoint's, the file's, or the recipe's for the network of `initial` or a new one.

    Raises:
        UserError: options contradict each other, the data, or the run that is resumed.
    """
    fusion = arguments.fusion_strategy
    if not arguments.sensor_enabled:
        if fusion not in (None, "none"):
            raise UserError(
                f"--no-sensor-enabled contradicts --fusion-strategy {fusion}; the policy without sensor is none"
            )
        fusion = "none"
    if arguments.steps is not None and arguments.epochs is not None:
        raise UserError("give --steps or --epochs, not both")
    if arguments.rewarm and not arguments.resume:
        raise UserError("--rewarm goes with --resume; a new run warms up anyway")
    if arguments.vlm_reuse_count not in (None, dataset.meta.vlm_reuse_count):
        raise UserError(
            f"{dataset.path} was prepared with --vlm-reuse-count {dataset.meta.vlm_reuse_count}; run prepare again "
            f"with --vlm-reuse-count {arguments.vlm_reuse_count}"
        )
    if resumed is not None:
        base = saved_config(resumed)
    elif arguments.config is not None:
        if initial is not None:
            raise UserError("give --config or --init-from, not both; --init-from keeps its own network")
        if not arguments.config.is_file():
            raise UserError(f"no such configuration file: {arguments.config}")
        base = config_json.from_json(TrainConfig, arguments.config.read_text(), source=str(arguments.config))
    else:
        policy = None if initial is None else initial.config
        base = make_config(
            arguments.recipe or "frozen",
            table.spec,
            dataset.spec,
            head=policy.head.kind if policy else arguments.model_type or "regression",
            fusion=policy.fusion.strategy if policy else fusion or "concat",
            noise_steps=arguments.diffusion_timesteps,
        )
        if initial is not None:
            base = begin_from(base, initial, anchored_on_target=arguments.recipe == "reference")
    refuse_unless_equal("model-type", arguments.model_type, base.policy.head.kind)
    refuse_unless_equal("fusion-strategy", fusion, base.policy.fusion.strategy)
    refuse_unless_equal("diffusion-timesteps", arguments.diffusion_timesteps, base.policy.head.noise_steps)
    misfits = base.policy.misfits(table.spec, dataset.spec)
    if misfits:
        raise UserError(f"the configured network does not fit {dataset.path}: {'; '.join(misfits)}")
    samples = len(table.sample_ticks("train"))
    config = _override(base, arguments, TRAINING_OPTIONS)
    optimizer = _override(base.optimizer, arguments, OPTIMIZER_OPTIONS)
    if arguments.sched_on == "epoch":
        updates = max(1, round(samples / config.batch_size))
        optimizer = dataclasses.replace(optimizer, schedule_interval=updates)
    config = dataclasses.replace(config, optimizer=optimizer)
    if arguments.remat:
        config = dataclasses.replace(config, policy=dataclasses.replace(config.policy, remat=True))
    if arguments.epochs is not None:
        config = dataclasses.replace(
            config, steps=max(1, round(arguments.epochs * samples / config.batch_size))
        )
    config = _override(config, arguments, SCHEDULE_OPTIONS)
    if resumed is None:
        return config
    unchanged = dataclasses.replace(config, **{name: getattr(base, name) for name in SCHEDULE_OPTIONS})
    if unchanged != base:
        raise UserError(
            f"--resume continues {arguments.out} with its own configuration; only "
            f"{', '.join('--' + name.replace('_', '-') for name in SCHEDULE_OPTIONS)} may change"
        )
    return rewarmed(config, base, int(resumed.name)) if arguments.rewarm else config


def begin_from(config: TrainConfig, initial: PolicyArtifact, *, anchored_on_target: bool) -> TrainConfig:
    """Returns a recipe's configuration with the network and the normalisation of a trained policy.

    anchored_on_target: keep training a regression on its own target, as the reference does; nothing is learnt so.
    """
    policy = dataclasses.replace(initial.config, dtype=config.policy.dtype)
    if not anchored_on_target:
        policy = dataclasses.replace(policy, head=policy.head.without_leaks())
    return dataclasses.replace(
        config,
        policy=policy,
        normalisation=initial.metadata.normalisation,
        init_from=str(initial.path),
    )


def rewarmed(config: TrainConfig, base: TrainConfig, step: int) -> TrainConfig:
    """Returns a resumed run's configuration in which the rates of `base` after `step` updates rise once more."""
    if config.steps <= step:
        raise UserError(f"--rewarm: the run is at step {step} of {config.steps}; give more --steps")
    expert, encoder = (
        float(make_schedule(base.optimizer, group, base.steps)(max(step - 1, 0)))
        for group in ("expert", "encoder")
    )
    again = Rewarm(step=step, lr=expert, sensor_lr=encoder)
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, rewarm=again))


def refuse_unless_equal(option: str, given: Any, configured: Any) -> None:
    """Refuses an option that contradicts a network that a file or a resumed run has already fixed."""
    if given is not None and given != configured:
        raise UserError(f"--{option} {given} contradicts the given configuration, which has {configured}")


def _override(config: Any, arguments: Arguments, names: tuple[str, ...]) -> Any:
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return dataclasses.replace(config, **given)


def _resume_arguments(argv: list[str]) -> list[str]:
    return [*(argument for argument in argv if argument != "--resume"), "--resume"]


if __name__ == "__main__":
    cli.run(main, Arguments, name="train", description=DESCRIPTION)
