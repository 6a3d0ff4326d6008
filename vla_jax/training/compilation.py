"""The two functions that a run calls on the devices, compiled for its data, its mesh and what lives there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax

from vla_jax.contracts.observation import Batch
from vla_jax.dataset.batches import sequential_batches
from vla_jax.dataset.feature_ages import AgedFeatures
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.preprocessing.preprocessor import Preprocessor
from vla_jax.progress import progress_bar
from vla_jax.training.config import TrainConfig
from vla_jax.training.feeding import Feed, ResidentArrays
from vla_jax.training.processes import is_main_process, process_share
from vla_jax.training.sharding import put_batch, replicated
from vla_jax.training.state import TrainState, network_structure
from vla_jax.training.step import train_step, validation_step
from vla_jax.training.validation import validation_metrics

Scalars = Mapping[str, jax.Array]


@dataclass(frozen=True)
class CompiledUpdate:
    """An update from the leaves of a state to those of the next.

    Handing the state over as the tree that it is would cost several milliseconds of each update on the host, for
    comparing what nnx keeps in its nodes.
    """

    compiled: jax.stages.Compiled
    structure: Any
    """Of the state."""

    def __call__(
        self,
        preprocessor: Preprocessor,
        leaves: list[jax.Array],
        resident: ResidentArrays,
        batch: Batch,
        root_key: jax.Array,
    ) -> tuple[list[jax.Array], Scalars]:
        """Returns the next state's leaves and scalars to log; those that are given are donated."""
        return self.compiled(preprocessor, leaves, resident, batch, root_key)

    def state(self, leaves: list[jax.Array]) -> TrainState:
        """Returns the state that has these leaves."""
        return jax.tree.unflatten(self.structure, leaves)


def compile_update(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    feed: Feed,
    preprocessor: Preprocessor,
    state: TrainState,
    batch: Batch,
    root_key: jax.Array,
) -> CompiledUpdate:
    """Compiles the update ahead of time, so that nothing can be compiled again later.

    state, batch: as the first call's.
    """
    network = network_structure(config)
    leaves, structure = jax.tree.flatten(state)

    def update(
        preprocessor: Preprocessor,
        leaves: list[jax.Array],
        resident: ResidentArrays,
        batch: Batch,
        root_key: jax.Array,
    ) -> tuple[list[jax.Array], Scalars]:
        batch, state = feed.complete(resident, batch), jax.tree.unflatten(structure, leaves)
        state, scalars = train_step(config, network, optimizer, preprocessor, state, batch, root_key)
        return jax.tree.leaves(state), scalars

    placement = [leaf.sharding for leaf in leaves]
    jitted = jax.jit(update, donate_argnums=1, out_shardings=(placement, replicated(feed.mesh)))
    lowered = jitted.lower(preprocessor, leaves, feed.resident, put_batch(feed.mesh, batch), root_key)
    return CompiledUpdate(lowered.compile(), structure)


def make_validation(
    config: TrainConfig,
    dataset: PackedDataset,
    features: FeatureTable,
    feed: Feed,
    preprocessor: Preprocessor,
    root_key: jax.Array,
) -> Callable[[TrainState], dict[str, float]]:
    """Returns what judges a state on the held-out episodes (`validation_metrics`); compiled at its first call."""
    structure = network_structure(config)
    aged = AgedFeatures.of(dataset, features, config.feature_age, config.seed)

    def evaluate(
        preprocessor: Preprocessor,
        params: Any,
        statistics: Any,
        resident: ResidentArrays,
        batch: Batch,
        root_key: jax.Array,
        index: jax.Array,
    ) -> Scalars:
        batch = feed.complete(resident, batch)
        return validation_step(config, structure, preprocessor, params, statistics, batch, root_key, index)

    jitted = jax.jit(evaluate, out_shardings=replicated(feed.mesh))

    def validate(state: TrainState) -> dict[str, float]:
        batches = sequential_batches(
            dataset,
            features,
            "val",
            config.batch_size,
            aged=aged,
            state_window=config.policy.last_states,
            share=process_share(),
            resident=feed.resident.names,
        )
        num_batches = -(-len(features.sample_ticks("val")) // config.batch_size)
        shown = progress_bar(
            batches,
            total=num_batches,
            desc="validate",
            unit="batch",
            leave=False,
            disable=not is_main_process(),
        )
        return validation_metrics(
            lambda params, statistics, batch, index: jitted(
                preprocessor, params, statistics, feed.resident, batch, root_key, np.int32(index)
            ),
            config,
            state,
            # Placed here, once for all the weights that are judged on a batch.
            (put_batch(feed.mesh, batch) for batch in shown),
        )

    return validate
