"""`python -m experiments.train DATA --cache CACHE --out RUN`: trains a policy on all local devices."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments import cli
from experiments.option_groups import given_in_groups, grouped_options
from vla_jax.errors import UserError
from vla_jax.training.config import FeedMode, TrainConfig
from vla_jax.training.request import Request

if TYPE_CHECKING:
    from vla_jax.dataset.feature_table import FeatureTable
    from vla_jax.dataset.packed_dataset import PackedDataset
    from vla_jax.training.closed_loop import ClosedLoop

DESCRIPTION = """Trains a policy head on the packed data set DATA with the vision-language features in CACHE.

Every option that is not given takes the recipe's value: --print-config shows them, and RUN/config.json keeps them."""

SETTINGS = {
    "network": {
        "fusion_strategy": "policy.fusion.strategy",
        "remat": "policy.remat",
    },
    "length and batch": {
        "steps": "steps",
        "batch_size": "batch_size",
        "grad_accum_steps": "grad_accum_steps",
        "seed": "seed",
    },
    "learning rate": {
        "lr": "optimizer.lr",
        "sensor_lr": "optimizer.sensor_lr",
        "min_lr": "optimizer.min_lr",
        "schedule": "optimizer.schedule",
        "warmup_ratio": "optimizer.warmup_ratio",
        "hold_ratio": "optimizer.hold_ratio",
    },
    "loss and noise": {
        "sensor_loss_weight": "sensor_loss_weight",
        "sensor_dropout": "sensor_dropout",
        "sensor_noise": "sensor_noise",
        "feature_noise": "feature_noise",
        "state_window_dropout": "state_window_dropout",
        "ema_decay": "ema_decay",
    },
    "interval": {
        "validate_every": "validate_every",
        "checkpoint_every": "checkpoint_every",
        "log_every": "log_every",
    },
}
"""Group of options in help → option → the field of `TrainConfig` that it sets."""
SettingOptions = grouped_options(TrainConfig, SETTINGS, default="the recipe's")


@dataclass(frozen=True)
class Running:
    """On what a run computes, and what it tells."""

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
    wandb: bool = False
    """Send the metrics to Weights & Biases too; WANDB_MODE=offline keeps them in RUN/wandb. Needs the extra `wandb`."""
    print_config: bool = False
    """Print the configuration that would be trained as JSON, and train nothing."""


@dataclass(frozen=True)
class Judging:
    """Roll-outs while training, for data of the simulated phantom."""

    rollout_every: int | None = None
    """Let the policy insert the needle in the simulated phantom after every so many updates. The best checkpoint is
    then the one that fails least; training itself does not change."""
    backbone: str | None = None
    """What the features were exported with; required by --rollout-every."""
    rollout_episodes: int = 32
    """Insertions each time: the scenarios of `rollout --seed 0`."""
    rollout_patience: int | None = None
    """End after so many roll-outs without improvement; never by default."""

    def closed_loop(self) -> "ClosedLoop | None":
        """Returns who judges, if anybody. Raises UserError: what is asked for contradicts itself."""
        if self.rollout_every is None:
            if self.rollout_patience is not None or self.backbone is not None:
                raise UserError("--backbone and --rollout-patience are for --rollout-every N; give it too")
            return None
        if self.backbone is None:
            raise UserError(
                "--rollout-every needs --backbone: the pictures that the policy sees must be encoded"
            )
        if self.rollout_episodes < 1:
            raise UserError(f"--rollout-episodes must be at least 1, not {self.rollout_episodes}")
        from experiments.closed_loop_judge import make_judge
        from vla_jax.training.closed_loop import ClosedLoop

        judge = make_judge(self.backbone, self.rollout_episodes)
        return ClosedLoop(judge, self.rollout_every, self.rollout_patience)


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Packed data set, written by `python -m experiments.prepare`."""
    request: Annotated[Request, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="run")]
    settings: Annotated[object, tyro.conf.arg(name="", constructor=SettingOptions)] = field(
        default_factory=SettingOptions
    )
    judging: Annotated[Judging, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="closed loop")] = field(
        default_factory=Judging
    )
    running: Annotated[Running, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="machine")] = field(
        default_factory=Running
    )


def main(arguments: Arguments) -> None:
    """Trains one policy and says where it is."""
    from experiments.console import make_console
    from experiments.data import open_dataset
    from vla_jax.storage import config_json
    from vla_jax.training.announcements import describe_metrics
    from vla_jax.training.beginning import begin
    from vla_jax.training.devices import refuse_silent_cpu
    from vla_jax.training.loop import train
    from vla_jax.training.processes import is_main_process, join_processes
    from vla_jax.training.sharding import make_mesh
    from vla_jax.training.wandb_sink import require_wandb

    request, running = arguments.request, arguments.running
    if running.wandb:
        require_wandb()
    if running.distributed:
        join_processes(running.coordinator, running.num_processes, running.process_id)
    refuse_silent_cpu()
    closed_loop = arguments.judging.closed_loop()
    dataset = open_dataset(arguments.data)
    beginning = begin(request, dataset, given_in_groups(arguments.settings, SETTINGS))
    config, features = beginning.config, beginning.features
    mesh = make_mesh(running.devices, running.fsdp)
    console = make_console(stderr=True, quiet=not is_main_process())
    for note in beginning.notes:
        console.print(note)
    if running.print_config:
        if is_main_process():
            print(config_json.to_json(config))
        return
    if features.num_missing:
        console.print(features.missing_note())
    console.print(
        f"{config.policy.head.kind} policy, fusion {config.policy.fusion.strategy}, "
        f"{features.num_slots} feature slots of width {features.width}"
    )
    result = train(
        config,
        dataset,
        features,
        request.out,
        mesh=mesh,
        resume=request.resume,
        other_data=beginning.other_data,
        initial=beginning.initial,
        feed=running.feed,
        wandb=running.wandb,
        closed_loop=closed_loop,
        announce=console.print,
    )
    if not is_main_process():
        return
    if result.interrupted:
        console.print(f"stopped and saved at step {result.step} of {config.steps}; continue with:")
        print(f"{cli.called('train')} {shlex.join(_resume_arguments(sys.argv[1:]))}")
        return
    print(f"trained {result.step} updates, {describe_metrics(result.metrics)}")
    for line in worse_than_the_mean(result.metrics, dataset, features):
        print(line)
    print(f"evaluate with: {cli.called('evaluate')} {request.out} {arguments.data} "
          f"--cache {request.cache} --out REPORT")  # fmt: skip


def worse_than_the_mean(
    metrics: Mapping[str, float], dataset: "PackedDataset", features: "FeatureTable"
) -> list[str]:
    """Returns a line where the held-out error is above that of the training episodes' mean action; else none."""
    from vla_jax.contracts.metric_names import BEST_METRIC
    from vla_jax.evaluation.baselines import mean_error

    ours, mean = metrics.get(BEST_METRIC), mean_error(dataset, features.sample_ticks("val"))
    if ours is None or mean is None or ours <= mean:
        return []
    return [
        f"that is worse than the mean action of the training episodes, always: action_mse {mean:.5f}. The policy has "
        "not learnt to act on what it sees; train longer, or look at the data with inspect"
    ]


def _resume_arguments(argv: list[str]) -> list[str]:
    return [*(argument for argument in argv if argument != "--resume"), "--resume"]


COMMAND = cli.Command(
    "train",
    Arguments,
    DESCRIPTION,
    main,
    renamed={"--no-sensor-enabled": "--no-sensor", "--sensor-enabled": "--sensor"},
)

if __name__ == "__main__":
    COMMAND.run()
