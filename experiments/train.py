"""`python -m experiments.train DATA --cache CACHE --out RUN`: trains a policy on all local devices."""

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from experiments import cli
from experiments.console import make_console
from experiments.data import open_dataset
from vla_jax import config_json
from vla_jax.data import FeatureTable, PackedDataset
from vla_jax.errors import UserError
from vla_jax.models.config import FusionStrategy, ModelType
from vla_jax.training.checkpoint import checkpoint_steps, read_metadata, resolve_checkpoint, saved_config
from vla_jax.training.config import TrainConfig
from vla_jax.training.loop import train
from vla_jax.training.recipes import RecipeName, make_config
from vla_jax.training.sharding import make_mesh

DESCRIPTION = """Trains a policy head on the packed data set DATA with the vision-language features in CACHE.

Every option that is not given takes the recipe's value; the whole configuration is written to RUN/config.json."""


OPTIMIZER_OPTIONS = ("lr", "sensor_lr", "min_lr", "warmup_ratio", "hold_ratio")
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
    reference: full-size, with every deviation from the PyTorch reference switched off. debug: tiny, for tests.
    A resumed run keeps the configuration it started with."""
    config: Path | None = None
    """JSON configuration to start from instead of a recipe, for instance another run's config.json."""
    model_type: ModelType | None = None
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
    warmup_ratio: float | None = None
    """Share of the updates in which the learning rate rises."""
    hold_ratio: float | None = None
    """Share of the updates at the peak learning rate."""
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
    devices: int | None = None
    """Number of local devices; all by default."""
    fsdp: int = 1
    """Devices over which parameters and optimizer state are split."""
    resume: bool = False
    """Continue RUN from its newest checkpoint, or start it when there is none."""


def main(arguments: Arguments) -> None:
    """Trains one policy and says where it is."""
    dataset = open_dataset(arguments.data)
    resuming = arguments.resume and bool(checkpoint_steps(arguments.out))
    resumed = resolve_checkpoint(arguments.out) if resuming else None
    table = FeatureTable.open(
        dataset,
        arguments.cache,
        features=features_to_use(arguments, resumed),
        allow_missing=arguments.allow_missing,
    )
    config = configuration(arguments, dataset, table, resumed)
    mesh = make_mesh(arguments.devices, arguments.fsdp)
    console = make_console(stderr=True)
    if table.num_missing:
        console.print(table.missing_note())
    console.print(
        f"{config.policy.model_type} policy, fusion {config.policy.fusion.strategy}, {config.steps} updates of "
        f"{config.batch_size} samples on {mesh.size} {jax.devices()[0].platform} device(s); "
        f"{len(table.sample_ticks('train'))} training and {len(table.sample_ticks('val'))} held-out samples, "
        f"{table.num_slots} feature slots of width {table.width}"
    )
    result = train(config, dataset, table, arguments.out, mesh=mesh, resume=arguments.resume)
    if result.interrupted:
        console.print(f"stopped and saved at step {result.step} of {config.steps}; continue with:")
        print(f"python -m experiments.train {shlex.join(_resume_arguments(sys.argv[1:]))}")
        return
    held_out = "; ".join(f"{name.split('/')[-1]} {value:.5f}" for name, value in result.metrics.items())
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
    digest = read_metadata(resumed)["identity"]["features"].get("digest")
    if digest is None:
        raise UserError(f"{resumed} was imported, not trained here: there is no training to resume")
    if arguments.features is not None and not digest.startswith(arguments.features):
        raise UserError(
            f"--resume continues {arguments.out}, which was trained on the features {digest[:16]}, not "
            f"{arguments.features}; leave --features out or start another run"
        )
    return digest[:16]


def configuration(
    arguments: Arguments, dataset: PackedDataset, table: FeatureTable, resumed: Path | None
) -> TrainConfig:
    """Returns the recipe's, the file's or the resumed checkpoint's configuration with the given options put in.

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
    if resumed is not None:
        base = saved_config(resumed)
    elif arguments.config is not None:
        if not arguments.config.is_file():
            raise UserError(f"no such configuration file: {arguments.config}")
        base = config_json.from_json(TrainConfig, arguments.config.read_text(), source=str(arguments.config))
    else:
        base = make_config(
            arguments.recipe or "frozen",
            model_type=arguments.model_type or "regression",
            fusion_strategy=fusion or "concat",
            vl_dim=table.width,
            vl_slots=table.num_slots,
            sensor_window_size=dataset.meta.sensor_window_size,
            diffusion_timesteps=arguments.diffusion_timesteps,
        )
    refuse_unless_equal("model-type", arguments.model_type, base.policy.model_type)
    refuse_unless_equal("fusion-strategy", fusion, base.policy.fusion.strategy)
    refuse_unless_equal("diffusion-timesteps", arguments.diffusion_timesteps, base.policy.diffusion.steps)
    if (base.policy.vl_dim, base.policy.vl_slots) != (table.width, table.num_slots):
        raise UserError(
            f"the configuration is for {base.policy.vl_slots} feature slots of width {base.policy.vl_dim}; "
            f"{arguments.cache} gives {table.num_slots} of width {table.width}"
        )
    optimizer = _override(base.optimizer, arguments, OPTIMIZER_OPTIONS)
    config = _override(dataclasses.replace(base, optimizer=optimizer), arguments, TRAINING_OPTIONS)
    if arguments.epochs is not None:
        samples = len(table.sample_ticks("train"))
        config = dataclasses.replace(
            config, steps=max(1, round(arguments.epochs * samples / config.batch_size))
        )
    config = _override(config, arguments, SCHEDULE_OPTIONS)
    if resumed is not None:
        unchanged = dataclasses.replace(config, **{name: getattr(base, name) for name in SCHEDULE_OPTIONS})
        if unchanged != base:
            raise UserError(
                f"--resume continues {arguments.out} with its own configuration; only "
                f"{', '.join('--' + name.replace('_', '-') for name in SCHEDULE_OPTIONS)} may change"
            )
    return config


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
