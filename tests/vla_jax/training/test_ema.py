import jax.numpy as jnp
import numpy as np

from vla_jax.training.ema import update_ema


def test_early_updates_forget_the_initial_weights_quickly():
    average = update_ema({"w": jnp.zeros(3)}, {"w": jnp.ones(3)}, jnp.asarray(0), decay=0.999)
    np.testing.assert_allclose(average["w"], 0.9, rtol=1e-6)


def test_late_updates_use_the_configured_decay():
    average = update_ema({"w": jnp.zeros(3)}, {"w": jnp.ones(3)}, jnp.asarray(10**6), decay=0.999)
    np.testing.assert_allclose(average["w"], 0.001, rtol=1e-4)
