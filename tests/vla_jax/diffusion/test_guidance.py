"""Guidance to a plan: its weights, and one step of it against the paper's formula in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.diffusion.flow_path import euler_sample, euler_times
from vla_jax.diffusion.guidance import MAX_WEIGHT, guidance, plan_weights

ROWS, HORIZON, DIMS = 3, 6, 2


def test_weights_fall_from_the_promised_actions_to_the_end_of_the_plan():
    weights = np.asarray(plan_weights(jnp.array([2, 0, 4, 0]), jnp.array([6, 2, 4, 0]), 10))
    falling = np.array([4, 3, 2, 1]) / 5
    expected = np.zeros((4, 10))
    expected[0, :2], expected[0, 2:6] = 1, falling * np.expm1(falling) / (np.e - 1)
    falling = np.array([2, 1]) / 3
    expected[1, :2] = falling * np.expm1(falling) / (np.e - 1)
    expected[2, :4] = 1
    np.testing.assert_allclose(weights, expected, atol=1e-6)


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    shape = (ROWS, HORIZON, DIMS)
    x, plan = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    matrix = rng.normal(size=(HORIZON * DIMS, HORIZON * DIMS)).astype(np.float32)
    return x, plan, matrix, rng.random((ROWS, HORIZON)).astype(np.float32)


@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9])
def test_one_step_of_a_flow_is_the_paper_s(drawn, t):
    x, plan, matrix, weights = drawn

    def estimate(x):
        velocity = (x.reshape(ROWS, -1) @ matrix.T).reshape(x.shape)
        return x + (1 - t) * velocity, velocity

    change, beside = guidance(estimate, jnp.asarray(x), t, 1 - t, jnp.asarray(plan), jnp.asarray(weights))
    # Eq. 2 to 4: v + min(β, (1 − t) / (t r²)) · (Y − Â)ᵀ W ∂Â/∂A, r² = (1 − t)² / (t² + (1 − t)²).
    velocity = (x.reshape(ROWS, -1) @ matrix.T).reshape(x.shape)
    jacobian = np.eye(HORIZON * DIMS) + (1 - t) * matrix
    error = weights[..., None] * (plan - (x + (1 - t) * velocity))
    squared = (1 - t) ** 2 / (t**2 + (1 - t) ** 2)
    factor = MAX_WEIGHT if t == 0 else min(MAX_WEIGHT, (1 - t) / (t * squared))
    np.testing.assert_allclose(beside, velocity, rtol=1e-3, atol=1e-4)
    added = factor * (error.reshape(ROWS, -1) @ jacobian).reshape(x.shape)
    np.testing.assert_allclose(change / (1 - t), added, rtol=2e-3, atol=2e-3)


def test_what_is_not_planned_may_hold_anything(drawn):
    x, plan, _, weights = drawn
    weights[:, 4:] = 0
    given = []
    for hidden in (plan[:, 4:].copy(), np.nan):
        plan[:, 4:] = hidden
        parts = (jnp.asarray(part) for part in (plan, weights))
        given.append(guidance(lambda x: (jnp.tanh(x), None), jnp.asarray(x), 0.5, 0.5, *parts)[0])
    assert np.abs(given[0]).max() > 0.1
    np.testing.assert_array_equal(*given)


def test_a_guided_chunk_goes_on_from_the_plan():
    """Where the actions of a chunk are one number and a little of their own, a chunk whose first actions are promised
    ends near them in all of its actions; without guidance it ends anywhere."""
    rng = np.random.default_rng(1)
    covariance = np.ones((HORIZON, HORIZON)) + 0.05 * np.eye(HORIZON)

    def velocity(x, t):
        """Of the flow from noise to normal actions of this covariance."""
        spread = (1 - t) ** 2 * np.eye(HORIZON) + t**2 * covariance
        return jnp.einsum(
            "hk,bka->bha", (t * covariance - (1 - t) * np.eye(HORIZON)) @ jnp.linalg.inv(spread), x
        )

    plan = jnp.full((ROWS, HORIZON, DIMS), 1.5)
    weights = plan_weights(jnp.full(ROWS, 2), jnp.full(ROWS, 2), HORIZON)

    def guided(x, t):
        change, _ = guidance(lambda x: (x + (1 - t) * velocity(x, t), None), x, t, 1 - t, plan, weights)
        return velocity(x, t) + change / (1 - t)

    noise = jnp.asarray(rng.normal(size=(ROWS, HORIZON, DIMS)), jnp.float32)
    free, drawn = (
        np.asarray(euler_sample(flow, noise, 20, per_step=jnp.asarray(euler_times(20))))
        for flow in (velocity, guided)
    )
    assert np.abs(drawn[:, :2] - 1.5).mean() < 0.15
    assert np.abs(drawn[:, 2:] - 1.5).mean() < 0.35 < 0.7 < np.abs(free[:, 2:] - 1.5).mean()
