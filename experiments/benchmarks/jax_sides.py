"""Our side of the heads benchmark: inference and one update in JAX, and XLA's count of their arithmetic."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.benchmarks.networks import (
    BETAS,
    CLIP_NORM,
    FLOW_STEPS,
    LEARNING_RATE,
    WEIGHT_DECAY,
    InferenceCase,
    Inputs,
)
from vla_jax.contracts.observation import Observation
from vla_jax.heads.diffusion import DiffusionHead
from vla_jax.heads.head_config import Sampling
from vla_jax.heads.regression import RegressionHead
from vla_jax.policy.network import PolicyNetwork, abstract_network
from vla_jax.policy.precision import with_dtype

Dtype = Literal["float32", "bfloat16"]


def inference_side(
    case: InferenceCase, network: PolicyNetwork, inputs: Inputs, *, steps: int, dtype: Dtype
) -> Callable[[], np.ndarray]:
    """Returns a call that predicts actions (b, h, a). steps: of denoising."""
    graphdef, state = nnx.split(with_dtype(network, dtype))
    observed = (jnp.asarray(inputs.vl), jnp.asarray(inputs.sensor), jnp.asarray(inputs.noise))

    @jax.jit
    def actions(state: nnx.State, vl: jax.Array, sensor: jax.Array, noise: jax.Array) -> jax.Array:
        policy = nnx.merge(graphdef, state)
        condition = policy.condition(vl, policy.encode_sensor(sensor))
        head = policy.expert
        if case == "regression":
            assert isinstance(head, RegressionHead)
            return head.decode(condition, jnp.zeros_like(noise))[0]
        keys = jax.random.split(jax.random.key(0), len(noise))
        if case in FLOW_STEPS:
            return head.sample(condition, keys=keys, sampling=Sampling("euler", steps))
        assert isinstance(head, DiffusionHead)
        return head.denoise(noise, condition, sampling=Sampling(case, steps), keys=keys)

    return lambda: np.asarray(actions(state, *observed))


def inference_flops(case: InferenceCase, network: PolicyNetwork, inputs: Inputs, *, steps: int) -> float:
    """Returns the operations of one call: the observation's once, the expert's once per denoising step."""
    graphdef, state = nnx.split(network)

    def part(method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda state, *inputs: method(nnx.merge(graphdef, state), *inputs)

    batch = len(inputs.vl)
    condition = jnp.zeros((batch, network.config.head.hidden_dim))
    features = jnp.zeros((batch, network.config.sensor.output_dim))
    flops = _flops(part(lambda policy, x: policy.encode_sensor(x)), state, inputs.sensor)
    flops += _flops(part(lambda policy, *x: policy.condition(*x)), state, inputs.vl, features)
    if case == "regression":
        return flops + _flops(part(lambda policy, x: policy.expert(x)), state, condition)
    step = part(lambda policy, x, c: policy.expert(x, c[:1], c))
    return flops + steps * _flops(step, state, inputs.noise, condition)


def training_side(
    network: PolicyNetwork, inputs: Inputs, *, calls: int, dtype: Dtype
) -> tuple[Callable[[], np.ndarray], float]:
    """Returns a call that makes one update and returns its loss, going on from its own last state; and its operations.

    calls: how often it will be called at most.
    """
    config = replace(network.config, dtype=dtype)
    # Parameters stay float32 while training; only the graph's compute type changes.
    graphdef, _, _ = nnx.split(abstract_network(config), nnx.Param, ...)
    _, params, rest = nnx.split(network, nnx.Param, ...)
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        optax.adamw(LEARNING_RATE, *BETAS, weight_decay=WEIGHT_DECAY),
    )
    actions = jnp.asarray(inputs.actions)
    observation = Observation(jnp.asarray(inputs.vl), None, jnp.asarray(inputs.sensor))

    def step(params: Any, rest: Any, state: Any, key: jax.Array) -> tuple[tuple[Any, Any, Any], jax.Array]:
        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            policy = nnx.merge(graphdef, params, rest, copy=True)
            losses = policy.loss(observation, actions, key=key, train=True)
            return losses.mean(), nnx.state(policy, nnx.Not(nnx.Param))

        (loss, rest_after), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), rest_after, state), loss

    compiled_step = jax.jit(step, donate_argnums=(0, 1, 2))
    params = jax.tree.map(jnp.copy, params)
    carried = (params, jax.tree.map(jnp.copy, rest), optimizer.init(params))
    keys = iter(jax.random.split(jax.random.key(0), calls))
    flops = _flops(step, *carried, jax.random.key(0))

    def update() -> np.ndarray:
        nonlocal carried
        carried, loss = compiled_step(*carried, next(keys))
        return np.asarray(loss)

    return update, flops


def _flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Returns XLA's count of the floating-point operations of a function without loops."""
    analysis = jax.jit(function).lower(*arguments).cost_analysis() or {}
    return float(analysis.get("flops", 0.0))
