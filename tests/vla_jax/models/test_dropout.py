import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.models.dropout import dropout


@pytest.mark.parametrize("rate", [0.1, 0.8])
def test_so_many_are_zeroed_and_the_rest_keeps_the_mean(rate):
    dropped = np.asarray(dropout(jnp.ones(20_000), rate, jax.random.key(0)))
    assert (dropped == 0).mean() == pytest.approx(rate, abs=0.02)
    np.testing.assert_allclose(dropped[dropped != 0], 1 / (1 - rate), rtol=1e-4)


def test_without_a_key_or_a_rate_nothing_changes():
    x = jnp.arange(5.0)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def test_entries_are_dropped_each_by_itself():
    """Two entries share a random word: the halves must not know of each other."""
    dropped = np.asarray(dropout(jnp.ones((2001, 7)), 0.3, jax.random.key(1)) == 0)
    both = (dropped[:, :-1] & dropped[:, 1:]).mean(axis=0)
    np.testing.assert_allclose(both, 0.09, atol=0.03)
    np.testing.assert_allclose(dropped.mean(axis=0), 0.3, atol=0.05)
