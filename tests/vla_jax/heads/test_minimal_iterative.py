"""The minimal iterative head: its loss of both passes, and that the second reads the first one's answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vla_jax.heads.minimal_iterative import MinimalIterativeConfig

CONFIG = MinimalIterativeConfig(
    hidden_dim=8, num_layers=1, num_heads=2, time_embedding_dim=8, dropout=0.0, second_time=0.8, noise_draws=2
)
KEYS = jax.random.split(jax.random.key(0))


@pytest.fixture
def head(monkeypatch):
    """A head whose network returns what it is given plus one, and notes it with the times."""
    head = CONFIG.make(4, 2, dtype=jnp.dtype("float32"), remat=False, rngs=nnx.Rngs(0))
    noted = []

    def network(self, x_t, time, condition, **_):
        noted.append(x_t)
        return x_t + 1.0

    monkeypatch.setattr(type(head), "__call__", network)
    monkeypatch.setattr(type(head), "embed_time", lambda self, t: noted.append(t) or t[:, None])
    return head, noted


def test_the_loss_weighs_both_passes_as_their_times_say(head):
    head, noted = head
    actions = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), jnp.float32)
    loss = head.loss(jnp.zeros((3, 8)), actions, keys=KEYS)
    times, x = noted
    np.testing.assert_allclose(times, [0.0] * 6 + [80.0] * 6, rtol=1e-6)
    np.testing.assert_array_equal(x[:6], 0.0)
    twice = np.repeat(np.asarray(actions), 2, axis=0)
    noise = np.asarray(jax.random.normal(KEYS[1], twice.shape))
    np.testing.assert_allclose(x[6:], twice + 0.2 * noise, rtol=1e-5, atol=1e-6)
    first, second = np.square(1.0 - twice), np.square(0.2 * noise + 1.0)
    weights = np.array([1 / 0.8**2, 1 / 0.2**2])
    expected = (weights[0] * first + weights[1] * second).reshape(3, 2, -1).mean(axis=(1, 2)) / weights.sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_the_second_pass_reads_the_first_one_s_answer_and_nothing_is_drawn(head):
    head, noted = head
    chunk = head.sample(jnp.zeros((2, 8)), keys=None)
    np.testing.assert_allclose(noted[0], [0.0, 80.0], rtol=1e-6)
    np.testing.assert_array_equal(noted[1], 0.0)
    np.testing.assert_array_equal(noted[2], 1.0)
    np.testing.assert_array_equal(chunk, np.full((2, 4, 2), 2.0))
