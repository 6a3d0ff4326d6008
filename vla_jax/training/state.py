"""The training state: everything that changes from one update to the next."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vla_jax.models.policy_network import PolicyNetwork
from vla_jax.training.config import TrainConfig
from vla_jax.training.sharding import Mesh, state_sharding


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """step: number of updates done, int32. params, ema_params: parameters and their average.
    statistics: what the network keeps beside its parameters (BatchNorm's running moments).
    optimizer: optax state."""

    step: Any
    params: Any
    ema_params: Any
    statistics: Any
    optimizer: Any


def network_structure(config: TrainConfig) -> nnx.GraphDef:
    """Returns the network's static structure without allocating any array."""
    return nnx.graphdef(nnx.eval_shape(lambda: PolicyNetwork(config.policy, rngs=nnx.Rngs(0))))


def make_state(config: TrainConfig, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """Returns the state before the first update; traceable, so that it can be made sharded."""
    network = PolicyNetwork(config.policy, rngs=nnx.Rngs(key))
    _, params, statistics = nnx.split(network, nnx.Param, ...)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: the step donates the state, and two donated buffers must not be one.
        ema_params=jax.tree.map(jnp.copy, params),
        statistics=statistics,
        optimizer=optimizer.init(params),
    )


def initialise_state(
    config: TrainConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, Any]:
    """Makes the first state directly on the mesh and returns it with its shardings."""
    key = jax.random.key(config.seed)

    def create(key: jax.Array) -> TrainState:
        return make_state(config, optimizer, key)

    shardings = state_sharding(mesh, jax.eval_shape(create, key))
    return jax.jit(create, out_shardings=shardings)(key), shardings
