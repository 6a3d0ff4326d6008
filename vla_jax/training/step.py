"""One update of the policy and one evaluation of a batch, as pure functions of arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vla_jax.preprocessing.normaliser import Normaliser
from vla_jax.training.config import TrainConfig
from vla_jax.training.ema import update_ema
from vla_jax.training.losses import sample_weights
from vla_jax.training.optimizer import make_schedule
from vla_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def train_step(
    config: TrainConfig,
    structure: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    normaliser: Normaliser,
    state: TrainState,
    batch: Batch,
    root_key: jax.Array,
) -> tuple[TrainState, Metrics]:
    """Returns the state after one optimizer update on `batch`, and device scalars to log.

    `batch` is a batch of the data set in physical units (`vla_jax.data`). The step's randomness is derived from
    `root_key` and the state's step alone, so a resumed run draws what an undisturbed one would.
    """
    dropout_key, sensor_key, noise_key = jax.random.split(jax.random.fold_in(root_key, state.step), 3)
    seen = batch["has_sensor"] & ~jax.random.bernoulli(
        sensor_key, config.sensor_dropout, batch["has_sensor"].shape
    )
    weights = sample_weights(
        batch["confidence"],
        seen,
        sensor_loss_weight=config.sensor_loss_weight,
        normalise=config.policy.model_type == "regression",
    )
    inputs = (
        normalise_inputs(normaliser, batch) | past_chunk(config, normaliser, batch) | {"has_sensor": seen}
    )
    inputs = add_noise(config, inputs, noise_key)
    inputs["actions"] = normaliser.normalise_actions(batch["actions"])

    def loss_of(params: Any, statistics: Any, part: Batch, part_weights: jax.Array, key: jax.Array):
        network = nnx.merge(structure, params, statistics, copy=True)
        loss = jnp.mean(part_weights * network.loss(**part, key=key, train=True))
        return loss, nnx.state(network, nnx.Not(nnx.Param))

    gradient_of = jax.value_and_grad(loss_of, has_aux=True)

    def accumulate(carry, part):
        statistics, loss_sum, gradient_sum = carry
        part_inputs, part_weights, key = part
        (loss, statistics), gradient = gradient_of(state.params, statistics, part_inputs, part_weights, key)
        return (statistics, loss_sum + loss, jax.tree.map(jnp.add, gradient_sum, gradient)), None

    parts = config.grad_accum_steps
    # Part i takes rows i, i + parts, …: each part stays spread over all devices.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), (inputs, weights))
    keys = jax.random.split(dropout_key, parts)
    if parts == 1:
        # Without a sum, which would pass over the whole gradient once more.
        (loss, statistics), gradient = gradient_of(
            state.params, state.statistics, *jax.tree.map(lambda x: x[0], split), keys[0]
        )
    else:
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (statistics, loss, gradient), _ = jax.lax.scan(
            accumulate, (state.statistics, jnp.zeros(()), zeros), (*split, keys)
        )
        loss, gradient = jax.tree.map(lambda x: x / parts, (loss, gradient))

    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        ema_params=update_ema(state.ema_params, params, state.step, config.ema_decay),
        statistics=statistics,
        optimizer=optimizer_state,
    )
    metrics = {
        "train/loss": loss,
        "train/gradient_norm": optax.tree.norm(gradient),
        "train/learning_rate": make_schedule(config.optimizer, "expert", config.steps)(state.step),
    }
    return new_state, metrics


def validation_step(
    config: TrainConfig,
    structure: nnx.GraphDef,
    normaliser: Normaliser,
    params: Any,
    statistics: Any,
    batch: Batch,
    key: jax.Array,
) -> Metrics:
    """Returns sums over the batch's valid samples: of squared and absolute action errors, and of the loss.

    Errors are of sampled actions, in mm and degrees; entries "squared_error", "absolute_error" [a], "loss" and
    "samples". The actions to predict never enter the sampler.
    """
    loss_key, sample_key = jax.random.split(key)
    network = nnx.merge(structure, params, statistics)
    inputs = normalise_inputs(normaliser, batch) | past_chunk(config, normaliser, batch)
    sampled = normaliser.denormalise_actions(network.sample(**inputs, key=sample_key))
    actions = normaliser.normalise_actions(batch["actions"])
    loss = network.loss(**inputs, actions=actions, key=loss_key, train=False)
    valid = batch["valid"].astype(jnp.float32)
    error = (sampled - batch["actions"]) * valid[:, None, None]
    return {
        "squared_error": jnp.sum(jnp.square(error), axis=0).mean(axis=0),
        "absolute_error": jnp.sum(jnp.abs(error), axis=0).mean(axis=0),
        "loss": jnp.sum(loss * valid),
        "samples": jnp.sum(valid),
    }


def add_noise(config: TrainConfig, inputs: Batch, key: jax.Array) -> Batch:
    """Adds the configured Gaussian noise to normalised windows and features.

    A network trained on few episodes could otherwise tell them apart by their speckle. A window's noise is drawn
    once per channel, as speckle stays while the needle stands: noise drawn per row would average out.
    """
    sensor_key, feature_key = jax.random.split(key)
    sensor, features = inputs["sensor"], inputs["vl"]
    if config.sensor_noise:
        per_channel = (sensor.shape[0], 1, sensor.shape[2])
        sensor = sensor + config.sensor_noise * jax.random.normal(sensor_key, per_channel)
    if config.feature_noise:
        features = features + config.feature_noise * jax.random.normal(feature_key, features.shape)
    return {**inputs, "sensor": sensor, "vl": features}


def normalise_inputs(normaliser: Normaliser, batch: Batch) -> Batch:
    """Returns what the policy may see of a batch, in network units."""
    return {
        "vl": normaliser.normalise_features(batch["vl"], batch["vl_mask"]),
        "vl_mask": batch["vl_mask"],
        "sensor": normaliser.normalise_sensor(batch["sensor"]),
        "has_sensor": batch["has_sensor"],
    }


def past_chunk(config: TrainConfig, normaliser: Normaliser, batch: Batch) -> Batch:
    """Returns the chunk that a policy anchored on the past starts from: the last action, repeated; else nothing."""
    if config.policy.z_chunk != "previous":
        return {}
    previous = normaliser.normalise_actions(batch["previous_action"])
    return {"z_chunk": jnp.repeat(previous[:, None], config.policy.horizon, axis=1)}
