"""Gradients, BatchNorm statistics and three AdamW steps of encoder and expert together, against the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from tests.vla_jax import recorded
from vla_jax.diffusion.schedule import add_noise
from vla_jax.policy.network import PolicyNetwork
from vla_jax.reference.weights import network_from_weights, reference_weights
from vla_jax.training.losses import sample_weights

CASES = [
    "diffusion_concat",
    "diffusion_cross_attention",
    "diffusion_gated",
    "diffusion_none_nosensor",
    "regression_concat",
    "regression_concat_noclip",
    "regression_cross_attention",
    "regression_gated_z0",
    "regression_none_nosensor",
]


def make_network(record) -> PolicyNetwork:
    kind, expert, sensor = (record.config[name] for name in ("kind", "action_expert", "sensor_encoder"))
    return network_from_weights(recorded.policy_config(kind, expert, sensor), record.weights)


def predict_and_target(network: PolicyNetwork, given):
    """What the reference compares, by the reference's own draws of step and noise."""
    features = None
    if network.config.uses_sensor:
        features = network.encode_sensor(given["sensor_data"], given["has_sensor_mask"], train=True)
    actions = given["gt_actions"]
    condition = network.condition(given["vl_tokens"], features)
    if network.config.head.kind == "regression":
        return network.expert.decode(condition, given["z_chunk"])[0], actions
    x_t = add_noise(network.expert.schedule, actions, given["t"], given["noise"])
    return network.expert.predict_noise(x_t, given["t"], condition), given["noise"]


@pytest.mark.parametrize("case", CASES)
def test_three_steps_equal_the_reference(case):
    record = recorded.load(f"training_step_{case}")
    given, expected, settings = record.inputs, record.outputs, record.config["optimizer"]
    network = make_network(record)
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    count = given["confidence"].shape[0]
    weights = sample_weights(
        given["confidence"],
        given.get("has_sensor_mask", jnp.zeros(count, bool)),
        sensor_loss_weight=record.config["sensor_loss_weight"],
        normalise=record.config["kind"] == "regression",
    )
    clip = settings["grad_clip_norm"]
    optimizer = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.adamw(
            settings["lr"], *settings["betas"], eps=settings["eps"], weight_decay=settings["weight_decay"]
        ),
    )

    @recorded.quick_jit
    def gradient_of(params, rest):
        def loss_of(params):
            network = nnx.merge(graphdef, params, rest, copy=True)
            prediction, target = predict_and_target(network, given)
            loss = jnp.mean(weights * jnp.square(prediction - target).mean(axis=(1, 2)))
            return loss, (nnx.state(network, nnx.Not(nnx.Param)), prediction)

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    # The optimizer sees one long vector, which compiles at once; its arithmetic is elementwise but for the norm.
    flat, unravel = ravel_pytree(params)
    state = optimizer.init(flat)
    losses, norms = [], []
    for index in range(3):
        (loss, (rest, prediction)), gradient = gradient_of(params, rest)
        flat_gradient, _ = ravel_pytree(gradient)
        updates, state = optimizer.update(flat_gradient, state, flat)
        flat = flat + updates
        params = unravel(flat)
        losses.append(loss)
        norms.append(jnp.linalg.norm(flat_gradient))
        if index == 0:
            np.testing.assert_allclose(prediction, expected["pred_step1"], atol=2e-5)
            gradients = reference_weights(nnx.merge(graphdef, gradient, rest))
        if index in (0, 2):
            check_state(
                reference_weights(nnx.merge(graphdef, params, rest)), expected, index + 1, settings["lr"]
            )
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
