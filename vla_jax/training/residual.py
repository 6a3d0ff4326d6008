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
from jaxtyping import Array, Float

from vla_jax.contracts.observation import Observation
from vla_jax.dataset.batches import SampleOrder
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.models.residual import ResidualConfig, ResidualNetwork
from vla_jax.policy.checkpoints import read_training
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.policy.residual import ErrorByChunkAge
from vla_jax.preprocessing.normaliser import Normaliser
from vla_jax.progress import progress_bar
from vla_jax.training.checkpoint import saved_config
from vla_jax.training.config import TrainConfig
from vla_jax.training.losses import sample_weights
from vla_jax.training.optimizer import decay_mask
from vla_jax.training.residual_config import ResidualTrainConfig
from vla_jax.training.residual_samples import ResidualSamples
from vla_jax.training.step import add_noise

_NOISE = 1
"""Tells the noise's draws from those of the first weights."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Batch:
    """Some of the samples, in recorded units; sensor windows in their storage type."""

    sensor: Any
    action: Any
    is_there: Any
    target: Any
    confidence: Any


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
    samples: ResidualSamples,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> ResidualNetwork:
    """Trains on samples of the training episodes, in an order of the seed alone; equal arguments give equal weights.

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
        leaves: Leaves, normaliser: Normaliser, batch: _Batch, key: jax.Array
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
    order = SampleOrder(np.arange(len(samples)), config.seed, _weights(dataset, samples))
    compiled, losses, every = None, [], max(config.steps // 10, 1)
    with progress_bar(total=config.steps, desc="train", unit="update") as bar:
        for step in range(config.steps):
            rows = order.at(np.arange(step * config.batch_size, (step + 1) * config.batch_size))
            inputs = (leaves, normaliser, _batch(dataset, samples, rows), fold_in(root_key, np.uint32(step)))
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
    network: ResidualNetwork,
    normaliser: Normaliser,
    dataset: PackedDataset,
    samples: ResidualSamples,
    *,
    batch_size: int,
) -> tuple[ErrorByChunkAge, ...]:
    """Returns the errors of samples with and without the residual, for each age; () where there are no samples."""
    structure, params = nnx.split(network)

    def correct(params: Any, normaliser: Normaliser, sensor: jax.Array, action: jax.Array) -> jax.Array:
        sensor, normalised = normaliser.normalise_sensor(sensor), normaliser.normalise_actions(action)
        corrections = _corrections(nnx.merge(structure, params), sensor, normalised)
        return action + corrections * normaliser.action_scale[None, None]

    compiled, corrected = jax.jit(correct), np.empty_like(samples.action)
    batches = list(_whole_batches(len(samples), batch_size))
    for rows in progress_bar(batches, desc="judge", unit="batch"):
        windows = dataset.sensor_windows(samples.tick[rows])
        corrected[rows] = compiled(params, normaliser, windows, samples.action[rows])
    found = []
    for age in range(samples.action.shape[1]):
        there = samples.is_there[:, age]
        errors = (
            float(np.square(actions[there, age] - samples.target[there], dtype=np.float64).mean())
            for actions in (samples.action, corrected)
        )
        if there.any():
            found.append(ErrorByChunkAge(age, int(there.sum()), *errors))
    return tuple(found)


def _loss(
    network: ResidualNetwork,
    config: TrainConfig,
    normaliser: Normaliser,
    batch: _Batch,
    key: jax.Array,
    normalises: bool,
) -> jax.Array:
    """The squared error of the corrected actions, normalised as the policy's: the mean over the chunks that there are,
    weighted by the samples' confidence."""
    action, target = (
        normaliser.normalise_actions(batch.action),
        normaliser.normalise_actions(batch.target[:, None]),
    )
    observation = Observation(None, None, normaliser.normalise_sensor(batch.sensor))
    sensor = jnp.asarray(add_noise(config, observation, key).sensor)
    error = jnp.mean(jnp.square(action + _corrections(network, sensor, action) - target), axis=2)
    error = jnp.sum(error * batch.is_there, axis=1) / jnp.sum(batch.is_there, axis=1)
    weights = sample_weights(batch.confidence, None, sensor_loss_weight=1.0, normalise=normalises)
    return jnp.mean(weights * error)


def _corrections(
    network: ResidualNetwork, sensor: Float[Array, "b t c"], actions: Float[Array, "b d a"]
) -> Float[Array, "b d a"]:
    """The corrections of what the chunks of 0 to d − 1 ticks ago have; each window is encoded once for all of them."""
    encoded, ages = network.encode(sensor), jnp.arange(actions.shape[1], dtype=jnp.float32)

    def at_age(action: Float[Array, "b a"], age: Float[Array, ""]) -> Float[Array, "b a"]:
        return network.decode(encoded, action, jnp.broadcast_to(age, len(action)))

    return jax.vmap(at_age, in_axes=(1, 0), out_axes=1)(actions, ages)


def _batch(dataset: PackedDataset, samples: ResidualSamples, rows: np.ndarray) -> _Batch:
    ticks = samples.tick[rows]
    return _Batch(
        dataset.sensor_windows(ticks),
        samples.action[rows],
        samples.is_there[rows],
        samples.target[rows],
        dataset.confidence(ticks),
    )


def _weights(dataset: PackedDataset, samples: ResidualSamples) -> np.ndarray:
    """Returns how often each sample is drawn, relative to the others: as its episode's are for the policy."""
    weights = np.array([entry.weight for entry in dataset.episodes], np.float64)
    return weights[dataset.ticks.episode[samples.tick]]


def _whole_batches(count: int, size: int) -> Iterator[np.ndarray]:
    """Yields row numbers in batches of one size; the last one repeats the last row."""
    for start in range(0, count, size):
        yield np.minimum(np.arange(start, start + size), count - 1)
