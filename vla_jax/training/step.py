"""One update of the policy and one evaluation of a batch, as pure functions of arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vla_jax.contracts.metric_names import GRADIENT_NORM, LEARNING_RATE, LOSS
from vla_jax.contracts.observation import Batch, Observation
from vla_jax.policy.prediction import predict_batch, row_keys
from vla_jax.preprocessing.preprocessor import Preprocessor
from vla_jax.training.config import TrainConfig
from vla_jax.training.ema import update_ema
from vla_jax.training.losses import sample_weights
from vla_jax.training.optimizer import make_schedule
from vla_jax.training.state import TrainState

Metrics = dict[str, jax.Array]


def train_step(
    config: TrainConfig,
    structure: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    preprocessor: Preprocessor,
    state: TrainState,
    batch: Batch,
    root_key: jax.Array,
) -> tuple[TrainState, Metrics]:
    """Returns the state after one optimizer update on `batch`, and device scalars to log.

    `batch` is in recorded units. The step's randomness is derived from `root_key` and the state's step alone, so a
    resumed run draws what an undisturbed one would.
    """
    dropout_key, sensor_key, noise_key = jax.random.split(jax.random.fold_in(root_key, state.step), 3)
    recorded = hide_sensors(config, batch.observation, sensor_key)
    recorded = hide_state_windows(config, recorded, jax.random.fold_in(sensor_key, 1))
    weights = sample_weights(
        batch.confidence,
        # As in the reference, a sample counts more only where the network reads its sensor.
        recorded.has_sensor if config.policy.uses_sensor else None,
        sensor_loss_weight=config.sensor_loss_weight,
        normalise=config.policy.head.normalises_weights,
    )
    observation = add_noise(config, preprocessor.observe(recorded), noise_key)
    inputs = (observation, preprocessor.encode_actions(batch.actions))

    def loss_of(params: Any, statistics: Any, part: Any, part_weights: jax.Array, key: jax.Array):
        network = nnx.merge(structure, params, statistics, copy=True)
        loss = jnp.mean(part_weights * network.loss(*part, key=key, train=True))
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
        LOSS: loss,
        GRADIENT_NORM: optax.tree.norm(gradient),
        LEARNING_RATE: jnp.asarray(make_schedule(config.optimizer, "expert", config.steps)(state.step)),
    }
    return new_state, metrics


def validation_step(
    config: TrainConfig,
    structure: nnx.GraphDef,
    preprocessor: Preprocessor,
    params: Any,
    statistics: Any,
    batch: Batch,
    root_key: jax.Array,
    index: jax.Array,
) -> Metrics:
    """Returns sums over the batch's valid samples: of squared and absolute action errors, and of the loss.

    Errors are of sampled actions, in recorded units; entries "squared_error", "absolute_error" [a], "loss" and
    "samples". The actions to predict never enter the sampler. Its noise is that of evaluation with the same seed: of
    `root_key` and the tick alone. The loss's draws are of `root_key` and the batch's number, `index`.
    """
    loss_key, _ = jax.random.split(jax.random.fold_in(root_key, index))
    network = nnx.merge(structure, params, statistics)
    sampled = predict_batch(network, preprocessor, batch.observation, row_keys(root_key, batch.tick))
    loss = network.loss(
        preprocessor.observe(batch.observation),
        preprocessor.encode_actions(batch.actions),
        key=loss_key,
        train=False,
    )
    valid = batch.valid.astype(jnp.float32)
    error = (sampled - batch.actions) * valid[:, None, None]
    return {
        "squared_error": jnp.sum(jnp.square(error), axis=0).mean(axis=0),
        "absolute_error": jnp.sum(jnp.abs(error), axis=0).mean(axis=0),
        "loss": jnp.sum(loss * valid),
        "samples": jnp.sum(valid),
    }


def hide_sensors(config: TrainConfig, observation: Observation, key: jax.Array) -> Observation:
    """Takes the sensor from the configured share of the samples, so that the policy learns to act without."""
    has_sensor = observation.has_sensor
    if has_sensor is None:
        return observation
    hidden = jax.random.bernoulli(key, config.sensor_dropout, has_sensor.shape)
    return observation.replace(has_sensor=has_sensor & ~hidden)


def hide_state_windows(config: TrainConfig, observation: Observation, key: jax.Array) -> Observation:
    """Takes the arm's last states from the configured share of the samples."""
    mask = observation.state_window_mask
    if mask is None:
        return observation
    hidden = jax.random.bernoulli(key, config.state_window_dropout, mask.shape[:1])
    return observation.replace(state_window_mask=mask & ~hidden[:, None])


def add_noise(config: TrainConfig, observation: Observation, key: jax.Array) -> Observation:
    """Adds the configured Gaussian noise to normalised windows and features.

    A network trained on few episodes could otherwise tell them apart by their speckle. A window's noise is drawn
    once per channel, as speckle stays while the needle stands: noise drawn per row would average out.
    """
    sensor_key, feature_key = jax.random.split(key)
    sensor, features = observation.sensor, observation.vl
    if config.sensor_noise and sensor is not None:
        per_channel = (sensor.shape[0], 1, sensor.shape[2])
        sensor = sensor + config.sensor_noise * jax.random.normal(sensor_key, per_channel)
    if config.feature_noise and features is not None:
        features = features + config.feature_noise * jax.random.normal(feature_key, features.shape)
    return observation.replace(sensor=sensor, vl=features)
