"""Gradients, BatchNorm statistics and three updates of encoder and expert together, against the reference.

The update is `train_step` as training calls it, with the optimizer that training makes; only what the reference drew,
steps and noises of the diffusion, is put in place of the draws.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.vla_jax import recorded
from vla_jax.contracts.observation import Batch, Observation
from vla_jax.diffusion.schedule import add_noise
from vla_jax.policy.config import PolicyConfig
from vla_jax.preprocessing.preprocessor import Preprocessor
from vla_jax.reference.conversion import identity_normaliser
from vla_jax.reference.weights import network_from_weights, reference_weights
from vla_jax.training.config import OptimizerConfig, TrainConfig
from vla_jax.training.optimizer import make_optimizer
from vla_jax.training.state import TrainState
from vla_jax.training.step import train_step

# Each head, fusion, clipping and anchor once; `make test-slow` has the other combinations.
CASES = [
    "diffusion_concat",
    "diffusion_cross_attention",
    "regression_concat_noclip",
    "regression_gated_z0",
    "regression_none_nosensor",
]
MORE_CASES = ["diffusion_gated", "diffusion_none_nosensor", "regression_concat", "regression_cross_attention"]


def policy_config(record) -> PolicyConfig:
    """Without dropout, and adding to the chunk that the record gives."""
    kind, expert, sensor = (record.config[name] for name in ("kind", "action_expert", "sensor_encoder"))
    config = recorded.policy_config(kind, expert, sensor)
    anchor = {"z_chunk": "previous"} if kind == "regression" else {}
    return replace(
        config,
        head=replace(config.head, dropout=0.0, **anchor),
        sensor=replace(config.sensor, dropout=0.0),
        fusion=replace(config.fusion, dropout=0.0),
    )


def train_config(record) -> TrainConfig:
    settings = record.config["optimizer"]
    beta1, beta2 = settings["betas"]
    return TrainConfig(
        policy=policy_config(record),
        sensor_loss_weight=record.config["sensor_loss_weight"],
        sensor_dropout=0.0,
        ema_decay=0.0,
        optimizer=OptimizerConfig(
            lr=settings["lr"],
            sensor_lr=settings["lr"],
            schedule="constant",
            beta1=beta1,
            beta2=beta2,
            eps=settings["eps"],
            weight_decay=settings["weight_decay"],
            decay_everything=True,
            clip_norm=settings["grad_clip_norm"] or 1e30,
        ),
    )


def make_batch(given) -> Batch:
    tokens = given["vl_tokens"]
    count = len(tokens)
    return Batch(
        observation=Observation(
            tokens,
            jnp.ones(tokens.shape[:2], bool),
            given.get("sensor_data"),
            given.get("has_sensor_mask"),
            previous_chunk=given.get("z_chunk"),
        ),
        actions=given["gt_actions"],
        confidence=given["confidence"],
        tick=jnp.arange(count),
        valid=jnp.ones(count, bool),
    )


def first_prediction(structure, params, statistics, given):
    """What the reference compares: the noise at its own steps, or the actions."""
    network = nnx.merge(structure, params, statistics, copy=True)
    observation = make_batch(given).observation
    features = network.sensor_features(observation, train=True)
    condition = network.condition(observation.vl, features)
    if network.config.head.kind == "regression":
        return network.expert.decode(condition, given["z_chunk"])[0]
    x_t = add_noise(network.expert.schedule, given["gt_actions"], given["t"], given["noise"])
    return network.expert.predict_noise(x_t, given["t"], condition)


def keep_gradient() -> optax.GradientTransformation:
    """Keeps the gradient as it came, for comparison."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda gradient, *_: (gradient, gradient)
    )


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE_CASES)]
)
def test_three_steps_equal_the_reference(case, monkeypatch):
    record = recorded.load(f"training_step_{case}")
    given, expected = record.inputs, record.outputs
    config = train_config(record)
    if config.policy.head.kind == "diffusion":
        monkeypatch.setattr(jax.random, "randint", lambda *_, **__: given["t"])
        monkeypatch.setattr(jax.random, "normal", lambda *_, **__: given["noise"])
    structure, params, statistics = nnx.split(
        network_from_weights(config.policy, record.weights), nnx.Param, ...
    )
    optimizer = optax.chain(keep_gradient(), make_optimizer(config.optimizer, config.steps))
    state = TrainState(jnp.zeros((), jnp.int32), params, params, statistics, optimizer.init(params))
    preprocessor, batch, key = (
        Preprocessor(identity_normaliser(config.policy)),
        make_batch(given),
        jax.random.key(0),
    )

    @recorded.quick_jit
    def update(state):
        return train_step(config, structure, optimizer, preprocessor, state, batch, key)

    prediction = recorded.quick_jit(first_prediction, static_argnums=0)(structure, params, statistics, given)
    np.testing.assert_allclose(prediction, expected["pred_step1"], atol=2e-5)
    losses, norms = [], []
    for index in range(3):
        state, metrics = update(state)
        losses.append(metrics["train/loss"])
        norms.append(metrics["train/gradient_norm"])
        if index == 0:
            gradients = reference_weights(nnx.merge(structure, state.optimizer[0], state.statistics))
        if index in (0, 2):
            weights = reference_weights(nnx.merge(structure, state.params, state.statistics))
            check_state(weights, expected, index + 1, config.optimizer.lr)
    np.testing.assert_allclose(losses, expected["losses"], rtol=1e-5)
    np.testing.assert_allclose(norms, expected["grad_norms"], rtol=1e-5)
    for name in (name for name in expected if name.startswith("grad/")):
        np.testing.assert_allclose(
            gradients[name.removeprefix("grad/")], expected[name], atol=2e-5, err_msg=name
        )


def check_state(actual, expected, step: int, lr: float) -> None:
    """Adam turns a gradient of rounding size into a full-size update, so those parameters are bounded by lr."""
    for name, value in expected.items():
        group, _, tensor = name.partition("/")
        if group == f"p{step}":
            certain = np.abs(expected[f"grad/{tensor}"]) > 1e-4
            np.testing.assert_allclose(actual[tensor][certain], value[certain], atol=5e-6, err_msg=name)
            np.testing.assert_allclose(actual[tensor], value, atol=2 * lr * step, err_msg=name)
        elif group == f"bn{step}":
            # The biases ahead of BatchNorm have no gradient but rounding, so Adam walks them at random, up to lr a
            # step each way; the running means (momentum 0.1) follow them.
            walk = 0.1 * 2 * lr * sum(range(step)) if tensor.endswith("running_mean") else 0.0
            np.testing.assert_allclose(actual[tensor], value, atol=2e-6 + walk, err_msg=name)
