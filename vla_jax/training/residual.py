"""Trains a fast residual (`vla_jax.models.residual`) beside a policy that stays as it is."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vla_jax.contracts.observation import Observation
from vla_jax.dataset.batches import SampleOrder
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.models.residual import ResidualConfig, ResidualNetwork
from vla_jax.policy.checkpoints import read_training
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.policy.residual import ErrorByChunkAge, Residual
from vla_jax.preprocessing.normaliser import Normaliser
from vla_jax.progress import progress_bar
from vla_jax.training.checkpoint import saved_config
from vla_jax.training.config import TrainConfig
from vla_jax.training.losses import sample_weights
from vla_jax.training.optimizer import decay_mask
from vla_jax.training.residual_config import ResidualTrainConfig
from vla_jax.training.residual_pairs import ResidualPairs
from vla_jax.training.step import add_noise

_NOISE = 1
"""Tells the noise's draws from those of the first weights."""


@dataclass(frozen=True)
class _Pairs:
    """A batch of pairs, in recorded units; sensor windows in their storage type."""

    sensor: Any
    action: Any
    chunk_age: Any
    target: Any
    confidence: Any


jax.tree_util.register_dataclass(_Pairs)

Leaves = list[jax.Array]


def policy_training(policy: InsertionPolicy) -> TrainConfig:
    """Returns how a policy was trained; of one that was imported, the defaults."""
    path = policy.loaded.path
    return TrainConfig(policy=policy.config) if read_training(path) is None else saved_config(path)


def train_residual(
    config: ResidualTrainConfig,
    network: ResidualConfig,
    policy_config: TrainConfig,
    normaliser: Normaliser,
    dataset: PackedDataset,
    pairs: ResidualPairs,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> ResidualNetwork:
    """Trains on pairs of the training episodes, in an order of the seed alone; equal arguments give equal weights.

    policy_config: of the policy's training, whose noise on sensor windows and weights of samples hold. normaliser: the
    policy's. say: is told of the loss, ten times.

    Raises:
        UserError: the loss stopped being finite.
    """
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            optax.cosine_decay_schedule(config.lr, config.steps),
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )
    made = ResidualNetwork(network, rngs=nnx.Rngs(config.seed))
    structure, params = nnx.split(made, nnx.Param)
    leaves, tree = jax.tree.flatten((params, optimizer.init(params)))
    normalises = policy_config.policy.head.normalises_weights

    def update(
        leaves: Leaves, normaliser: Normaliser, batch: _Pairs, key: jax.Array
    ) -> tuple[Leaves, jax.Array]:
        params, optimizer_state = jax.tree.unflatten(tree, leaves)
        loss, gradient = jax.value_and_grad(
            lambda params: _loss(
                nnx.merge(structure, params), policy_config, normaliser, batch, key, normalises
            )
        )(params)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return jax.tree.leaves((optax.apply_updates(params, updates), optimizer_state)), loss

    root_key = jax.random.fold_in(jax.random.key(config.seed), _NOISE)
    fold_in = jax.jit(jax.random.fold_in)
    order = SampleOrder(np.arange(len(pairs)), config.seed, _weights(dataset, pairs))
    compiled, losses, every = None, [], max(config.steps // 10, 1)
    with progress_bar(total=config.steps, desc="train", unit="update") as bar:
        for step in range(config.steps):
            rows = order.at(np.arange(step * config.batch_size, (step + 1) * config.batch_size))
            inputs = (leaves, normaliser, _batch(dataset, pairs, rows), fold_in(root_key, np.uint32(step)))
            if compiled is None:
                # Ahead of time: nothing can be compiled again.
                compiled = jax.jit(update, donate_argnums=0).lower(*inputs).compile()
            leaves, loss = compiled(*inputs)
            losses.append(loss)
            bar.update()
            if (step + 1) % every == 0 or step + 1 == config.steps:
                mean = float(jnp.stack(losses).mean())
                if not math.isfinite(mean):
                    raise UserError(
                        f"the loss stopped being finite before update {step + 1}; give a lower --lr"
                    )
                say(f"update {step + 1}: loss {mean:.5f}")
                losses.clear()
    params, _ = jax.tree.unflatten(tree, leaves)
    return nnx.merge(structure, params)


def errors_by_chunk_age(
    residual: Residual, dataset: PackedDataset, pairs: ResidualPairs, *, batch_size: int
) -> tuple[ErrorByChunkAge, ...]:
    """Returns the errors of pairs with and without the residual, for each age; () where there are no pairs."""
    corrected = np.empty_like(pairs.action)
    batches = list(_whole_batches(len(pairs), batch_size))
    for rows in progress_bar(batches, desc="judge", unit="batch"):
        ages, windows = pairs.chunk_age[rows].astype(np.float64), dataset.sensor_windows(pairs.tick[rows])
        corrected[rows] = residual.correct(pairs.action[rows], ages, windows, np.ones(len(rows), bool))
    found = []
    for age in np.unique(pairs.chunk_age).tolist():
        here = pairs.chunk_age == age
        errors = (
            float(np.square(actions[here] - pairs.target[here], dtype=np.float64).mean())
            for actions in (pairs.action, corrected)
        )
        found.append(ErrorByChunkAge(age, int(here.sum()), *errors))
    return tuple(found)


def _loss(
    network: ResidualNetwork,
    config: TrainConfig,
    normaliser: Normaliser,
    batch: _Pairs,
    key: jax.Array,
    normalises: bool,
) -> jax.Array:
    """The squared error of the corrected actions, normalised as the policy's, weighted by the samples' confidence."""
    action, target = (
        normaliser.normalise_actions(part[:, None])[:, 0] for part in (batch.action, batch.target)
    )
    observation = Observation(None, None, normaliser.normalise_sensor(batch.sensor))
    sensor = jnp.asarray(add_noise(config, observation, key).sensor)
    present = jnp.ones(len(action), bool)
    corrected = action + network(sensor, present, action, batch.chunk_age)
    weights = sample_weights(batch.confidence, None, sensor_loss_weight=1.0, normalise=normalises)
    return jnp.mean(weights * jnp.mean(jnp.square(corrected - target), axis=1))


def _batch(dataset: PackedDataset, pairs: ResidualPairs, rows: np.ndarray) -> _Pairs:
    ticks = pairs.tick[rows]
    return _Pairs(
        dataset.sensor_windows(ticks),
        pairs.action[rows],
        pairs.chunk_age[rows].astype(np.float32),
        pairs.target[rows],
        dataset.confidence(ticks),
    )


def _weights(dataset: PackedDataset, pairs: ResidualPairs) -> np.ndarray:
    """Returns how often each pair is drawn, relative to the others: as its episode's samples are."""
    weights = np.array([entry.weight for entry in dataset.episodes], np.float64)
    return weights[dataset.ticks.episode[pairs.tick]]


def _whole_batches(count: int, size: int) -> Iterator[np.ndarray]:
    """Yields row numbers in batches of one size; the last one repeats the last row."""
    for start in range(0, count, size):
        yield np.minimum(np.arange(start, start + size), count - 1)
