"""Checkpoints of a training run: the policy artifact, and beside it everything that resuming needs.

`vla_jax.policy.checkpoints` lists the items. The training's own are `optimizer`, whichever parameters acting does not
need, and `training`: configuration, position in the data, scalars not yet logged.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.contracts.metric_names import best_score
from vla_jax.contracts.specs import DataSpec, FeatureSpec
from vla_jax.errors import UserError
from vla_jax.policy.artifact import restore_normaliser
from vla_jax.policy.checkpoints import (
    CHECKPOINTS,
    METADATA,
    TRAINING,
    check_sound,
    checkpoint_steps,
    read_metadata,
    read_training,
)
from vla_jax.policy.metadata import PolicyMetadata, RunIdentity
from vla_jax.preprocessing.normaliser import Normaliser
from vla_jax.storage import config_json
from vla_jax.storage.array_items import PendingItems, begin_writing, remove_remains, restore
from vla_jax.storage.replacing import remove_folder
from vla_jax.training.config import TrainConfig
from vla_jax.training.processes import is_main_process
from vla_jax.training.state import TrainState

logger = logging.getLogger(__name__)

_STATE_ITEMS = ("params", "ema_params", "statistics", "optimizer")


@dataclass(frozen=True)
class RestoredTraining:
    """What a run goes on from.

    data_position: of `BatchIterator.get_state`. metrics: of the last validation. unlogged: scalars of the updates since
    the last log line.
    """

    state: TrainState
    normaliser: Normaliser
    data_position: dict[str, Any]
    metrics: dict[str, float]
    unlogged: list[dict[str, float]]


class CheckpointWriter:
    """Writes checkpoints of one run in the background; keeps the newest `keep` and the best by validation.

    With several processes each makes one and calls it alike; the first of them finishes and discards checkpoints.
    """

    def __init__(self, run: Path, *, keep: int = 2) -> None:
        self._directory = (run / CHECKPOINTS).absolute()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._keep = keep
        self._is_first_process = is_main_process()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        if self._is_first_process:
            remove_remains(self._directory)
        self._scores = _scores(run)
        self._data: str | None = None

    def save(
        self,
        state: TrainState,
        *,
        step: int,
        config: TrainConfig,
        normaliser: Normaliser,
        data: DataSpec,
        features: FeatureSpec,
        identity: RunIdentity,
        data_position: Mapping[str, Any],
        metrics: Mapping[str, float],
        unlogged: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Starts writing a checkpoint; returns when the arrays are copied out, so that training may donate them.

        data, features: what the run is trained on. unlogged: scalars of the updates since the last log line, which a
        resumed run's next line counts too.

        Raises:
            UserError: this checkpoint, or the one before, cannot be written.
        """
        self.wait()
        metadata = PolicyMetadata(
            network=config.policy,
            data=data,
            features=features,
            normalisation=config.normalisation,
            weights="ema_params" if config.ema_decay > 0 else "params",
            identity=identity,
            step=step,
            metrics=dict(metrics),
        )
        training = {
            "config": config_json.to_plain(config),
            "data_position": dict(data_position),
            "unlogged": [dict(scalars) for scalars in unlogged],
        }
        arrays = {name: getattr(state, name) for name in _STATE_ITEMS}
        arrays["normaliser"] = jax.tree.map(jnp.asarray, normaliser)
        values = {METADATA: metadata.to_plain(), TRAINING: training}
        pending = begin_writing(self._directory / str(step), arrays, values)
        self._data = identity.data_key
        self._scores[step] = (best_score(metrics), self._data)
        self._pending = self._thread.submit(self._finish, pending)

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk.

        Raises:
            UserError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits until everything is on disk."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _finish(self, pending: PendingItems) -> None:
        pending.finish(commit=self._is_first_process)
        if self._is_first_process:
            self._discard_old()

    def _discard_old(self) -> None:
        # Errors on other data are not to be compared with these.
        scored = {
            step: score
            for step, (score, data) in self._scores.items()
            if score is not None and data == self._data
        }
        kept = {*sorted(self._scores)[-self._keep :], *sorted(scored, key=scored.__getitem__)[:1]}
        for step in self._scores.keys() - kept:
            remove_folder(self._directory / str(step))
            del self._scores[step]


def restore_training(directory: Path, abstract_state: TrainState) -> RestoredTraining:
    """Restores a training state with the shardings of `abstract_state`, and what was saved beside it.

    abstract_state: `jax.ShapeDtypeStruct` leaves with today's shardings.

    Raises:
        UserError: the checkpoint does not hold such a state.
    """
    metadata, training = read_metadata(directory), _training(directory)
    check_sound(directory, (*_STATE_ITEMS, "normaliser"))
    items = restore(directory, {name: getattr(abstract_state, name) for name in _STATE_ITEMS})
    step = jax.device_put(np.int32(metadata.step), abstract_state.step.sharding)
    return RestoredTraining(
        state=TrainState(step=step, **dict(zip(_STATE_ITEMS, items, strict=True))),
        normaliser=restore_normaliser(directory, metadata.normalisation),
        data_position=training["data_position"],
        metrics=metadata.metrics,
        unlogged=training["unlogged"],
    )


def saved_config(directory: Path) -> TrainConfig:
    """Reads the configuration that a checkpoint was trained with.

    Raises:
        UserError: it was not trained here, or is damaged.
    """
    return config_json.from_plain(TrainConfig, _training(directory)["config"], source=str(directory))


def _training(directory: Path) -> dict[str, Any]:
    training = read_training(directory)
    if training is None:
        raise UserError(f"{directory} was imported, not trained here: there is no training to resume")
    return training


def _scores(run: Path) -> dict[int, tuple[tuple[float, ...] | None, str | None]]:
    """Reads how good a run's checkpoints are, with the data they are on; one that cannot be read is left
    out."""
    scores = {}
    for step in checkpoint_steps(run):
        try:
            metadata = read_metadata(run / CHECKPOINTS / str(step))
        except UserError as error:
            logger.warning("left alone: %s", error)
        else:
            scores[step] = (best_score(metadata.metrics), metadata.identity.data_key)
    return scores
