"""`python -m experiments.train_residual RUN DATA --cache CACHE`: trains what corrects a policy's actions."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from experiments import cli
from experiments.config_options import given, options_for
from experiments.console import make_console
from experiments.data import open_dataset
from vla_jax.errors import UserError
from vla_jax.reporting.page import number
from vla_jax.training.residual_config import ResidualTrainConfig

if TYPE_CHECKING:
    from vla_jax.dataset.feature_table import FeatureTable
    from vla_jax.dataset.packed_dataset import PackedDataset, Split
    from vla_jax.models.residual import ResidualConfig
    from vla_jax.policy.insertion_policy import InsertionPolicy
    from vla_jax.policy.residual import ErrorByChunkAge
    from vla_jax.training.config import TrainConfig
    from vla_jax.training.residual_samples import ResidualSamples

DESCRIPTION = """Trains a small network that corrects the action that a chunk has for a tick by the tick's own sensor
window, however old the chunk is. The policy stays as it is: its chunks are predicted once.

Writes RUN/residual, in place of one that is there; `rollout --residual` and `live --residual` use it."""

SETTINGS = {entry.name: entry.name for entry in dataclasses.fields(ResidualTrainConfig)}
SettingOptions = options_for(ResidualTrainConfig, SETTINGS)


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Training output directory, or one checkpoint in it."""
    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Packed data set that the policy was trained on."""
    cache: Path
    """Feature cache that it was trained with."""
    checkpoint: str = "latest"
    """Which checkpoint of a training output directory: latest, or best by its validation error."""
    settings: Annotated[object, tyro.conf.arg(name="", constructor=SettingOptions)] = field(
        default_factory=SettingOptions
    )


def main(arguments: Arguments) -> None:
    """Predicts the chunks, trains on them, writes the residual and prints what it does on held-out episodes."""
    from vla_jax.evaluation.compatibility import check_compatible, open_matching_features
    from vla_jax.policy.insertion_policy import InsertionPolicy
    from vla_jax.policy.residual import (
        CheckpointIdentity,
        ResidualMetadata,
        residual_folder,
        save_residual,
    )
    from vla_jax.storage import config_json
    from vla_jax.storage.locks import locked
    from vla_jax.storage.replacing import remove_leftovers
    from vla_jax.training.residual import errors_by_chunk_age, policy_training, train_residual

    config = ResidualTrainConfig(**given(arguments.settings, SETTINGS))
    dataset = open_dataset(arguments.data)
    policy = InsertionPolicy.from_checkpoint(arguments.run, checkpoint=arguments.checkpoint)
    network = _network(config, policy)
    features = open_matching_features(policy, dataset, arguments.cache)
    check_compatible(policy, dataset, features)
    if not dataset.has_sensor(features.sample_ticks("train")).any():
        raise UserError(f"{dataset.path}: no training sample has a sensor: there is nothing to correct by")
    loaded, console = policy.loaded, make_console()
    run = residual_folder(loaded.path).parent
    with locked(run, busy=f"another process is training into {run}; wait until it has ended"):
        remove_leftovers(run)
        policy_config = policy_training(policy)
        train, held_out = (
            _samples(policy, dataset, features, policy_config, split, config, network.chunk_age_max)
            for split in ("train", "val")
        )
        console.print(f"{len(train)} ticks with a sensor, {len(held_out)} held out")
        trained = train_residual(
            config, network, policy_config, loaded.normaliser, dataset, train, say=console.print
        )
        errors = errors_by_chunk_age(
            trained, loaded.normaliser, dataset, held_out, batch_size=config.batch_size
        )
        place = save_residual(
            loaded.path,
            trained,
            ResidualMetadata(
                network,
                CheckpointIdentity.of(loaded),
                {"config": config_json.to_plain(config), "data": dataset.describe()},
                errors,
            ),
        )
    if errors:
        console.print(errors_table(errors))
    console.print(f"residual: {place}", soft_wrap=True)


def errors_table(errors: "Sequence[ErrorByChunkAge]") -> Table:
    """Returns the held-out errors by the chunk's age, with and without the residual."""
    table = Table(title="held-out action_mse by the age of the chunk, samples with a sensor")
    for column in ("ticks", "samples", "policy", "corrected", "of it"):
        table.add_column(column, justify="right")
    for error in errors:
        share = f"{error.corrected / error.policy:.0%}" if error.policy else ""
        cells = (error.chunk_age, error.samples, error.policy, error.corrected)
        table.add_row(*map(number, cells), share)
    return table


def _network(config: ResidualTrainConfig, policy: "InsertionPolicy") -> "ResidualConfig":
    """Returns the sizes of a policy's residual; raises UserError where it cannot have this one."""
    from vla_jax.models.residual import ResidualConfig

    sensor, horizon, path = policy.data.sensor, policy.data.actions.horizon, policy.loaded.path
    if sensor is None or not policy.config.uses_sensor:
        raise UserError(f"{path} reads no sensor: a residual corrects by the sensor's newest window")
    oldest = horizon - 1 if config.chunk_age_max is None else config.chunk_age_max
    if oldest >= horizon:
        raise UserError(
            f"--chunk-age-max {oldest}: a chunk of {horizon} actions is at most {horizon - 1} ticks old"
        )
    return ResidualConfig(
        action_dim=policy.data.actions.size,
        chunk_age_max=oldest,
        channels=sensor.channels,
        temporal_length=policy.sensor_window or policy.config.sensor.temporal_length,
        hidden_dim=config.hidden_dim,
    )


def _samples(
    policy: "InsertionPolicy",
    dataset: "PackedDataset",
    features: "FeatureTable",
    policy_config: "TrainConfig",
    split: "Split",
    config: ResidualTrainConfig,
    chunk_age_max: int,
) -> "ResidualSamples":
    """Predicts the chunks of a split, on features as old as in its training, and puts them beside the ticks."""
    import numpy as np

    from vla_jax.dataset.feature_ages import AgedFeatures
    from vla_jax.evaluation.prediction import predict_ticks
    from vla_jax.training.residual_samples import make_samples

    ticks = features.sample_ticks(split)
    if not len(ticks):
        shape = (0, policy.data.actions.horizon, policy.data.actions.size)
        return make_samples(dataset, ticks, np.zeros(shape, np.float32), chunk_age_max)
    aged = AgedFeatures.of(dataset, features, policy_config.feature_age, policy_config.seed)
    found = predict_ticks(
        policy,
        dataset,
        features,
        ticks,
        batch_size=config.batch_size,
        seed=config.seed,
        aged=aged,
        what=split,
    )
    return make_samples(dataset, found.tick, found.predicted, chunk_age_max)


COMMAND = cli.Command("train_residual", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
