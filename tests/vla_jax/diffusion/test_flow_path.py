"""Straight paths, the times drawn on them, and Euler's steps, on a flow whose velocity is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.diffusion.flow_path import (
    LAST_TIME,
    draw_times,
    euler_sample,
    euler_times,
    on_path,
    path_velocity,
)

MEAN, DEVIATION = 0.7, 0.4


def exact_velocity(x, t):
    """Of the flow from standard normal noise to actions of MEAN and DEVIATION: the mean of actions − noise where the
    path is at x."""
    covariance = t * DEVIATION**2 - (1 - t)
    return MEAN + covariance / ((1 - t) ** 2 + (t * DEVIATION) ** 2) * (x - t * MEAN)


def follow(velocity, noise, steps):
    return np.asarray(euler_sample(velocity, noise, steps, per_step=jnp.asarray(euler_times(steps))))


@pytest.fixture(scope="module")
def noise():
    return jax.random.normal(jax.random.key(0), (64, 4, 3))


def test_the_exact_velocity_carries_noise_to_the_actions_distribution(noise):
    chunks = follow(exact_velocity, noise, 200)
    np.testing.assert_allclose(chunks, MEAN + DEVIATION * np.asarray(noise), atol=0.02)
    assert chunks.mean() == pytest.approx(MEAN, abs=0.05)
    assert chunks.std() == pytest.approx(DEVIATION, rel=0.1)


def test_twice_the_steps_halve_euler_s_error(noise):
    exact = MEAN + DEVIATION * np.asarray(noise)
    errors = [np.abs(follow(exact_velocity, noise, steps) - exact).max() for steps in (50, 100, 200)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("steps", [1, 2, 4, 10])
def test_where_the_actions_are_certain_any_number_of_steps_is_exact(noise, steps):
    chunks = follow(lambda x, t: (MEAN - x) / (1 - t), noise, steps)
    np.testing.assert_allclose(chunks, MEAN, rtol=1e-5)


def test_a_path_leads_from_the_noise_to_the_actions_at_its_velocity(noise):
    actions = 2.0 + 0.5 * noise[::-1]
    times = jnp.full(len(noise), 0.25)
    np.testing.assert_array_equal(on_path(noise, actions, 0 * times), noise)
    np.testing.assert_array_equal(on_path(noise, actions, 0 * times + 1), actions)
    moved = on_path(noise, actions, times + 0.5) - on_path(noise, actions, times)
    np.testing.assert_allclose(moved / 0.5, path_velocity(noise, actions), atol=1e-5)


@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 1.0), (1.0, 1.0), (5.0, 2.0)])
def test_the_share_of_noise_has_the_moments_of_its_beta_distribution(alpha, beta):
    times = np.asarray(draw_times(jax.random.key(1), 40_000, alpha=alpha, beta=beta, shift=1.0))
    assert 0 <= times.min() <= times.max() <= LAST_TIME
    share = 1 - times / LAST_TIME
    assert share.mean() == pytest.approx(alpha / (alpha + beta), abs=0.01)
    variance = alpha * beta / ((alpha + beta) ** 2 * (alpha + beta + 1))
    assert share.var() == pytest.approx(variance, rel=0.03)


def test_a_shift_of_four_draws_noisy_times_more_often():
    draw = {"alpha": 1.0, "beta": 1.0}
    uniform = np.sort(draw_times(jax.random.key(2), 1001, **draw, shift=1.0)) / LAST_TIME
    shifted = np.sort(draw_times(jax.random.key(2), 1001, **draw, shift=4.0)) / LAST_TIME
    np.testing.assert_allclose(shifted, uniform / (1 + 3 * (1 - uniform)), atol=1e-6)
    assert np.median(shifted) == pytest.approx(0.2, abs=0.02)
