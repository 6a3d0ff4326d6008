"""What a run holds before its first update: restored from its checkpoint, taken from another policy, or new."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from vla_jax.contracts.specs import LAB_ANGLES, LAB_STATE
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.policy.artifact import PolicyArtifact
from vla_jax.preprocessing.normaliser import (
    Normaliser,
    feature_moments,
    make_normaliser,
    motion_moments,
    state_moments,
)
from vla_jax.training.checkpoint import restore_training
from vla_jax.training.config import TrainConfig
from vla_jax.training.sharding import Mesh, replicated
from vla_jax.training.state import TrainState, initialise_state

# Enough to estimate the moments of every feature dimension within about 2 %.
MAX_MOMENT_RECORDS = 4096
MAX_MOMENT_WINDOWS = 16384


@dataclass(frozen=True)
class StartingPoint:
    """Everything that changes during a run, and the normaliser, which does not; all arrays on the mesh.

    step: updates done. data_position: where the reading goes on; None at the beginning. metrics: of the last
    validation. unlogged: scalars of the updates since the last log line.
    """

    state: TrainState
    normaliser: Normaliser
    step: int = 0
    data_position: Mapping[str, Any] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    unlogged: list[dict[str, float]] = field(default_factory=list)


def resumed_start(checkpoint: Path, abstract: TrainState, mesh: Mesh) -> StartingPoint:
    """Goes on from a checkpoint of the run. abstract: shapes and shardings of its state today.

    Raises:
        UserError: the checkpoint does not hold such a state.
    """
    restored = restore_training(checkpoint, abstract)
    return StartingPoint(
        restored.state,
        _everywhere(restored.normaliser, mesh),
        int(checkpoint.name),
        restored.data_position,
        restored.metrics,
        restored.unlogged,
    )


def new_start(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    dataset: PackedDataset,
    features: FeatureTable,
    initial: PolicyArtifact | None,
    mesh: Mesh,
) -> StartingPoint:
    """Begins with the weights and the normalisation of `initial`, or with new ones.

    Raises:
        UserError: the data set has no training samples.
    """
    if initial is None:
        state = initialise_state(config, optimizer, abstract)
        normaliser = fit_normaliser(config, dataset, features)
    else:
        state = initialise_state(config, optimizer, abstract, initial.network)
        normaliser = initial.normaliser
    return StartingPoint(state, _everywhere(normaliser, mesh))


def fit_normaliser(config: TrainConfig, dataset: PackedDataset, features: FeatureTable) -> Normaliser:
    """Makes the normaliser from the training episodes' statistics and features.

    Raises:
        UserError: the data set has no training samples.
    """
    ticks = features.sample_ticks("train")
    if not len(ticks):
        raise UserError(f"{dataset.path} has no training samples; look at what prepare said of its episodes")
    records = np.unique(dataset.record_index(ticks))
    if len(records) > MAX_MOMENT_RECORDS:
        records = np.random.default_rng(0).choice(records, MAX_MOMENT_RECORDS, replace=False)
    values, mask = features.gather(np.sort(records))
    moments = feature_moments(values, mask, per_slot=features.spec.has_fixed_slots)
    state = motion = None
    is_angle = np.isin(dataset.spec.state, LAB_ANGLES) & (dataset.spec.state == LAB_STATE)
    if config.policy.state is not None:
        state = state_moments(dataset.ticks.pose[ticks], is_angle)
    if config.policy.last_states is not None:
        if len(ticks) > MAX_MOMENT_WINDOWS:
            ticks = np.sort(np.random.default_rng(0).choice(ticks, MAX_MOMENT_WINDOWS, replace=False))
        motion = motion_moments(*dataset.state_windows(ticks, config.policy.last_states), is_angle)
    return make_normaliser(config.normalisation, dataset.statistics, *moments, state, motion)


def _everywhere(normaliser: Normaliser, mesh: Mesh) -> Normaliser:
    # From the host: what one process holds on its own device cannot be placed on a mesh of several.
    return jax.device_put(jax.tree.map(np.asarray, normaliser), replicated(mesh))
