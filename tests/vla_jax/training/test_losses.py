"""Weighted losses against recorded losses and gradients of the reference."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.paths import PARITY
from vla_jax.training.losses import sample_weights

RECORDED = np.load(PARITY / "losses.npz")
SETS = json.loads(str(RECORDED["config"]))["sets"]


def weighted_loss(prediction, name, *, sensor_loss_weight, normalise):
    error = jnp.square(prediction - RECORDED[f"in/{name}/target"]).mean(axis=(1, 2))
    weights = sample_weights(
        jnp.asarray(RECORDED[f"in/{name}/confidence"]),
        jnp.asarray(RECORDED[f"in/{name}/has_sensor_mask"]),
        sensor_loss_weight=sensor_loss_weight,
        normalise=normalise,
    )
    return jnp.mean(weights * error)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", ["diffusion", "regression"])
@pytest.mark.parametrize("sensor", [True, False], ids=["sensor", "nosensor"])
def test_loss_and_gradient_equal_the_reference(name, kind, sensor):
    suffix = "" if sensor else "_nosensor"
    weight = SETS[name]["sensor_loss_weight"] if sensor else 1.0
    prediction = jnp.asarray(RECORDED[f"in/{name}/pred"])
    loss, gradient = jax.value_and_grad(weighted_loss)(
        prediction, name, sensor_loss_weight=weight, normalise=kind == "regression"
    )
    np.testing.assert_allclose(loss, RECORDED[f"out/{name}/{kind}{suffix}_train_loss"], rtol=1e-5)
    if sensor:
        np.testing.assert_allclose(gradient, RECORDED[f"out/{name}/{kind}_dpred"], atol=2e-5)
