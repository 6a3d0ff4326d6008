"""The residual's network: zero where it must be, told apart by sensor, action and the chunk's age."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.vla_jax.policy.residuals import residual_network
from vla_jax.errors import UserError
from vla_jax.models.residual import ResidualConfig, ResidualNetwork

CONFIG = ResidualConfig(action_dim=3, chunk_age_max=4, channels=5, temporal_length=9, hidden_dim=4)
NETWORK = residual_network(CONFIG)


def inputs(batch=3, rows=9, **changes):
    rng = np.random.default_rng(1)
    made = {
        "sensor": rng.normal(size=(batch, rows, 5)),
        "has_sensor": np.ones(batch, bool),
        "action": rng.normal(size=(batch, 3)),
        "chunk_age": np.zeros(batch),
    }
    made |= changes
    return {
        name: jnp.asarray(each, bool if name == "has_sensor" else jnp.float32) for name, each in made.items()
    }


def test_it_begins_as_zero_and_can_learn_to_be_something_else():
    begun = ResidualNetwork(CONFIG, rngs=nnx.Rngs(3))
    np.testing.assert_array_equal(begun(**inputs()), 0.0)
    gradient = nnx.grad(lambda network: jnp.sum(network(**inputs())))(begun)
    assert np.abs(gradient["project"]["kernel"][...]).max() > 0


def test_without_a_sensor_it_is_zero_whatever_the_window_holds():
    given = inputs(has_sensor=[True, False, True])
    given["sensor"] = given["sensor"].at[1].set(jnp.nan)
    correction = np.asarray(NETWORK(**given))
    np.testing.assert_array_equal(correction[1], 0.0)
    assert (np.abs(correction[[0, 2]]) > 0).all()
    np.testing.assert_allclose(correction[[0, 2]], NETWORK(**inputs())[np.array([0, 2])], rtol=1e-5)


def test_it_sees_the_window_its_order_the_action_and_the_age():
    base = np.asarray(NETWORK(**inputs()))
    others = (
        {"sensor": inputs()["sensor"][:, ::-1]},
        {"action": inputs()["action"] + 0.5},
        {"chunk_age": np.full(3, 2)},
    )
    for change in others:
        assert np.abs(np.asarray(NETWORK(**inputs(**change))) - base).max() > 1e-3


def test_ages_between_two_ticks_lie_between_and_those_beyond_the_largest_are_the_largest():
    def embedded(*ages):
        return np.asarray(NETWORK._embed(jnp.asarray(ages, jnp.float32)))

    np.testing.assert_array_equal(embedded(0, 1, 2, 3, 4), np.eye(5))
    np.testing.assert_allclose(embedded(1.25), [[0, 0.75, 0.25, 0, 0]])
    np.testing.assert_array_equal(embedded(9), embedded(4))


def test_windows_of_another_length_are_resampled():
    assert NETWORK(**inputs(rows=13)).shape == (3, 3)


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="hidden_dim is 0"):
        ResidualConfig(action_dim=3, chunk_age_max=4, channels=5, temporal_length=9, hidden_dim=0)
