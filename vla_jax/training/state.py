"""The training state: everything that changes from one update to the next."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vla_jax.policy.network import PolicyNetwork, abstract_network
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
    return nnx.graphdef(abstract_network(config.policy))


def make_state(config: TrainConfig, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """Returns the state before the first update; traceable, so that it can be made sharded."""
    network = PolicyNetwork(config.policy, rngs=nnx.Rngs(key))
    _, params, statistics = nnx.split(network, nnx.Param, ...)
    return _begin(optimizer, params, statistics)


def _begin(optimizer: optax.GradientTransformation, params: Any, statistics: Any) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: the step donates the state, and two donated buffers must not be one.
        ema_params=jax.tree.map(jnp.copy, params),
        statistics=statistics,
        optimizer=optimizer.init(params),
    )


def abstract_state(config: TrainConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the state's shapes, dtypes and shardings on the mesh, without allocating it."""
    shapes = jax.eval_shape(
        functools.partial(make_state, config, optimizer), jax.eval_shape(lambda: jax.random.key(config.seed))
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_sharding(mesh, shapes),
    )


def initialise_state(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    network: PolicyNetwork | None = None,
) -> TrainState:
    """Makes the state before the first update directly on the devices that `abstract` names.

    network: begin with this network's parameters and statistics, which must be those of `config.policy`.
    """
    placement = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    if network is None:
        # The key is made inside: one process's key could not be given to a mesh of several.
        return jax.jit(
            lambda: make_state(config, optimizer, jax.random.key(config.seed)), out_shardings=placement
        )()
    _, *given = nnx.split(network, nnx.Param, ...)
    given = jax.device_put(jax.tree.map(np.asarray, given), [placement.params, placement.statistics])
    return jax.jit(functools.partial(_begin, optimizer), out_shardings=placement)(*given)
