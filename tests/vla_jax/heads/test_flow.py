"""The flow head: how it samples, and what it refuses."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.vla_jax import recorded
from vla_jax.errors import UserError
from vla_jax.heads.flow import FlowConfig
from vla_jax.heads.head_config import Sampling

SMALL = FlowConfig(hidden_dim=8, num_layers=1, num_heads=2, time_embedding_dim=8, dropout=0.0)
KEYS = jax.random.split(jax.random.key(0), 3)


@recorded.quick_jit
def loss_of(head, condition, actions, keys):
    return head.loss(condition, actions, keys=keys)


def make(config, *, zero=False):
    head = config.make(8, 7, dtype=jnp.dtype("float32"), remat=False, rngs=nnx.Rngs(0))
    if zero:
        nnx.update(head, jax.tree.map(jnp.zeros_like, nnx.state(head)))
    return head


@pytest.mark.parametrize("steps", [1, 4])
def test_a_velocity_that_is_constant_moves_the_noise_by_it(steps):
    head = make(SMALL, zero=True)
    head.head_out.bias[...] = jnp.arange(7.0)
    sampled = head.sample(jnp.zeros((3, 8)), keys=KEYS, sampling=Sampling("euler", steps))
    noise = jax.vmap(head.draw_noise)(KEYS)
    np.testing.assert_allclose(sampled, noise + jnp.arange(7.0)[None, None], rtol=1e-5, atol=1e-6)


def test_a_network_that_predicts_the_actions_leads_straight_to_them():
    head = make(replace(SMALL, prediction="sample"), zero=True)
    head.head_out.bias[...] = jnp.arange(7.0)
    for steps in (1, 4):
        sampled = head.sample(jnp.zeros((3, 8)), keys=KEYS, sampling=Sampling("euler", steps))
        np.testing.assert_allclose(sampled, np.broadcast_to(np.arange(7.0), sampled.shape), atol=1e-5)
    # Its loss is that of the actions, whatever noise and time are.
    loss = loss_of(head, jnp.zeros((3, 8)), jnp.full((3, 8, 7), 2.0), KEYS[:2])
    np.testing.assert_allclose(loss, np.square(np.arange(7.0) - 2.0).mean(), rtol=1e-3)


def test_the_steps_are_the_configuration_s_unless_asked_for():
    assert SMALL.sampling() == Sampling("euler", 10)
    assert replace(SMALL, sampling_steps=2).sampling() == Sampling("euler", 2)
    assert SMALL.sampling("euler", 1) == Sampling("euler", 1)
    head, condition = make(SMALL), jnp.ones((3, 8))
    ten, one = (head.sample(condition, keys=KEYS, sampling=SMALL.sampling(steps=n)) for n in (10, 1))
    np.testing.assert_array_equal(head.sample(condition, keys=KEYS), ten)
    assert np.abs(ten - one).max() > 1e-4
    with pytest.raises(UserError, match="sampler 'ddim'; choose one of euler"):
        SMALL.sampling("ddim")
    with pytest.raises(UserError, match="--steps 0 must be between 1 and 1000"):
        SMALL.sampling(steps=0)


def test_each_row_starts_from_noise_of_its_own_key():
    head = make(SMALL)
    sampled = head.sample(jnp.zeros((3, 8)), keys=KEYS)
    assert np.abs(sampled[0] - sampled[1]).max() > 1e-3
    alone = head.sample(jnp.zeros((1, 8)), keys=KEYS[1:2])
    np.testing.assert_allclose(alone[0], sampled[1], atol=1e-5)


def test_several_draws_are_of_noise_each():
    rows, keys = 1500, jax.random.split(jax.random.key(1))
    losses = [
        loss_of(
            make(replace(SMALL, noise_draws=n), zero=True),
            jnp.zeros((rows, 8)),
            jnp.zeros((rows, 8, 7)),
            keys,
        )
        for n in (1, 4)
    ]
    assert [loss.shape for loss in losses] == [(rows,)] * 2
    assert [float(loss.mean()) for loss in losses] == pytest.approx([1.0, 1.0], abs=0.02)
    assert float(losses[1].var()) == pytest.approx(float(losses[0].var()) / 4, rel=0.2)
