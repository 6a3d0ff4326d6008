"""Residuals without training: as they begin, and with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vla_jax.models.residual import ResidualConfig, ResidualNetwork
from vla_jax.policy.residual import Residual


def residual_config(policy, chunk_age_max=3, hidden_dim=4):
    sensor = policy.data.sensor
    return ResidualConfig(policy.data.actions.size, chunk_age_max, sensor.channels, sensor.window, hidden_dim)


def residual_network(config, *, is_random=True):
    network = ResidualNetwork(config, rngs=nnx.Rngs(0))
    if not is_random:
        return network
    structure, params = nnx.split(network)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), params)
    return nnx.merge(structure, params)


def residual_of(policy, *, is_random=True, **sizes):
    network = residual_network(residual_config(policy, **sizes), is_random=is_random)
    return Residual(network, policy.loaded.normaliser)
