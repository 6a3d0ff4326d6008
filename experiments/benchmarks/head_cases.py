"""The cases of the heads benchmark: what each side computes, and the clock around it."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.benchmarks.timing import time_in_turn, timed
from vla_jax.contracts.observation import Observation
from vla_jax.heads.action_head import Sampling
from vla_jax.policy.config import PolicyConfig
from vla_jax.policy.network import PolicyNetwork, abstract_network
from vla_jax.policy.precision import with_dtype
from vla_jax.reference.weights import network_from_weights

Size = Literal["full", "small"]
DDIM_STEPS = 10
CLIP_NORM = 1.0
ADAMW = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.01}
# Largest difference that float32 rounding leaves between the two sides, in units of the result's largest value.
AGREEMENT = 1e-4
# On a GPU PyTorch runs in bfloat16 and JAX's float32 products in TF32.
LOW_PRECISION_AGREEMENT = 0.1


@dataclass(frozen=True)
class Settings:
    """What to compare, and on what."""

    size: Size
    rounds: int
    compile_torch: bool
    bfloat16: bool
    on_gpu: bool


@dataclass(frozen=True)
class Timing:
    """One side of one case. flops: arithmetic of one call, counted by XLA; error: largest difference to eager."""

    case: str
    batch: int
    sensor_length: int
    side: str
    median_s: float
    best_s: float
    first_call_s: float
    flops: float
    error: float | None


def run_case(case: str, batch: int, sensor_length: int, settings: Settings) -> list[Timing]:
    """Times all sides of a case, one call of each in turn.

    Raises:
        RuntimeError: the two sides do not compute the same.
    """
    import torch

    from experiments.benchmarks import torch_heads

    model_type = "regression" if case == "regression" else "diffusion"
    config = policy_config(model_type, sensor_length, settings.size)
    torch.manual_seed(0)
    device = "cuda" if settings.on_gpu else "cpu"
    module = torch_heads.Policy(config).to(device)
    network = network_from_weights(
        config, {name: tensor.cpu().numpy() for name, tensor in module.state_dict().items()}
    )
    inputs = make_inputs(config, batch, sensor_length)
    if case == "train":
        sides, flops = _training_sides(module, network, inputs, settings)
    else:
        sides, flops = _inference_sides(case, module.eval(), network, inputs, settings)
    first, outputs = {}, {}
    for name, call in sides.items():
        first[name], outputs[name] = timed(call)
    errors = _errors(case, outputs, LOW_PRECISION_AGREEMENT if settings.on_gpu else AGREEMENT)
    seconds = time_in_turn(sides, settings.rounds)
    return [
        Timing(
            case=case,
            batch=batch,
            sensor_length=sensor_length,
            side=name,
            median_s=statistics.median(values),
            best_s=min(values),
            first_call_s=first[name],
            flops=flops,
            error=errors.get(name),
        )
        for name, values in seconds.items()
    ]


def policy_config(model_type: str, sensor_length: int, size: Size) -> PolicyConfig:
    """The reference's network, so that both sides have the same parts."""
    config = PolicyConfig.reference(model_type)
    if size == "small":
        config = replace(
            config,
            vl_dim=64,
            sensor=replace(config.sensor, hidden_dim=32, output_dim=64),
            head=replace(config.head, hidden_dim=64, num_layers=2),
        )
    return config.with_sensor_length(sensor_length)


def make_inputs(config: PolicyConfig, batch: int, sensor_length: int) -> dict[str, np.ndarray]:
    """Standard normal observations, actions and noise."""
    rng = np.random.default_rng(0)
    shapes = {
        "vl": (batch, 1, config.vl_dim),
        "sensor": (batch, sensor_length, config.sensor.channels),
        "actions": (batch, config.horizon, config.action_dim),
        "noise": (batch, config.horizon, config.action_dim),
    }
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if config.head.noise_steps is None:
        return arrays
    return arrays | {"t": rng.integers(0, config.head.noise_steps, batch).astype(np.int32)}


def matmul_rates(on_gpu: bool) -> dict[str, float]:
    """GFLOP/s of a large square product in JAX: what the device gives at best."""
    width, rates = (8192 if on_gpu else 2048), {}
    for dtype in ("float32", "bfloat16"):
        x = jnp.ones((width, width), dtype)
        product = jax.jit(jnp.matmul)
        product(x, x).block_until_ready()
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            product(x, x).block_until_ready()
            seconds.append(time.perf_counter() - start)
        rates[dtype] = 2 * width**3 / min(seconds) / 1e9
    return rates


def _inference_sides(
    case: str, module: Any, network: PolicyNetwork, inputs: dict[str, np.ndarray], settings: Settings
) -> tuple[dict[str, Callable[[], np.ndarray]], float]:
    import torch

    from experiments.benchmarks import torch_heads

    device = next(module.parameters()).device
    tensors = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
    steps = network.config.head.noise_steps
    if steps is not None:
        betas = torch.from_numpy(network.expert.schedule.betas).to(device)
        cumulative = torch.from_numpy(network.expert.schedule.alphas_cumprod).to(device)
        timesteps = [index * (steps // DDIM_STEPS) for index in range(DDIM_STEPS)][::-1]

    def eager(policy: Any) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=settings.on_gpu):
            vl, sensor = tensors["vl"], tensors["sensor"]
            if case == "regression":
                actions = policy.action_expert(vl, torch.zeros_like(tensors["noise"]), policy.encode(sensor))[
                    0
                ]
            elif case == "ddim":
                actions = torch_heads.ddim_sample(policy, cumulative, timesteps, tensors["noise"], vl, sensor)
            else:
                actions = torch_heads.ddpm_sample(policy, betas, tensors["noise"], vl, sensor)
            return actions.float().cpu().numpy()

    sides: dict[str, Callable[[], np.ndarray]] = {"torch eager": lambda: eager(module)}
    if settings.compile_torch:
        compiled = _compile_parts(module)
        sides["torch.compile"] = lambda: _without_fast_path(eager, compiled)
    arrays = {name: jnp.asarray(array) for name, array in inputs.items()}
    observed = (arrays["vl"], arrays["sensor"], arrays["noise"])
    variants = ["float32", "bfloat16"] if settings.bfloat16 else ["float32"]
    for dtype in variants:
        graphdef, state = nnx.split(with_dtype(network, dtype))

        def actions(state, vl, sensor, noise, graphdef=graphdef):
            policy = nnx.merge(graphdef, state)
            condition = policy.condition(vl, policy.encode_sensor(sensor))
            if case == "regression":
                return policy.expert.decode(condition, jnp.zeros_like(noise))[0]
            keys = jax.random.split(jax.random.key(0), len(noise))
            sampling = Sampling(case, DDIM_STEPS if case == "ddim" else steps)
            return policy.expert.denoise(noise, condition, sampling=sampling, keys=keys)

        compiled_actions = jax.jit(actions)
        sides[f"jax {dtype}"] = lambda call=compiled_actions, state=state: np.asarray(call(state, *observed))
    return sides, _inference_flops(case, network, observed)


def _inference_flops(case: str, network: PolicyNetwork, observed: tuple[jax.Array, ...]) -> float:
    """Operations of one call: the observation's once, the expert's once per denoising step."""
    vl, sensor, noise = observed
    graphdef, state = nnx.split(network)

    def part(method):
        return lambda state, *inputs: method(nnx.merge(graphdef, state), *inputs)

    condition = jnp.zeros((vl.shape[0], network.config.head.hidden_dim))
    flops = _flops(part(lambda policy, x: policy.encode_sensor(x)), state, sensor)
    features = jnp.zeros((vl.shape[0], network.config.sensor.output_dim))
    flops += _flops(part(lambda policy, *x: policy.condition(*x)), state, vl, features)
    if case == "regression":
        return flops + _flops(part(lambda policy, x: policy.expert(x)), state, condition)
    steps = DDIM_STEPS if case == "ddim" else network.config.head.noise_steps
    step = part(lambda policy, x, c: policy.expert(x, c[:1], c))
    return flops + steps * _flops(step, state, noise, condition)


def _training_sides(
    module: Any, network: PolicyNetwork, inputs: dict[str, np.ndarray], settings: Settings
) -> tuple[dict[str, Callable[[], float]], float]:
    """Calls that make one update and return its loss; each side goes on from its own last state."""
    import copy

    import torch

    device = next(module.parameters()).device
    tensors = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
    tensors["t"] = tensors["t"].long()
    signal = torch.from_numpy(network.expert.schedule.sqrt_alphas_cumprod).to(device)[
        tensors["t"], None, None
    ]
    sigma = torch.from_numpy(network.expert.schedule.sqrt_one_minus_alphas_cumprod).to(device)[
        tensors["t"], None, None
    ]

    def torch_step(policy: Any, optimizer: Any, parameters: list) -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=settings.on_gpu):
            x_t = signal * tensors["actions"] + sigma * tensors["noise"]
            features = policy.encode(tensors["sensor"])
            prediction = policy.action_expert(x_t, tensors["t"], tensors["vl"], features)
        loss = torch.nn.functional.mse_loss(prediction.float(), tensors["noise"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        return loss.item()

    def torch_side(policy: Any, *, compiled: bool) -> Callable[[], float]:
        parameters = list(policy.parameters())
        optimizer = torch.optim.AdamW(parameters, **ADAMW)
        policy.train()
        called = _compile_parts(policy) if compiled else policy
        return lambda: torch_step(called, optimizer, parameters)

    sides = {"torch eager": torch_side(module, compiled=False)}
    if settings.compile_torch:
        sides["torch.compile"] = torch_side(copy.deepcopy(module), compiled=True)
    config = replace(network.config, dtype="bfloat16" if settings.on_gpu else "float32")
    # Parameters stay float32 while training; only the graph's compute type changes.
    graphdef, _, _ = nnx.split(abstract_network(config), nnx.Param, ...)
    _, params, rest = nnx.split(network, nnx.Param, ...)
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        optax.adamw(ADAMW["lr"], *ADAMW["betas"], weight_decay=ADAMW["weight_decay"]),
    )
    arrays = {name: jnp.asarray(array) for name, array in inputs.items()}
    observation = Observation(arrays["vl"], None, arrays["sensor"])

    def step(params, rest, state, key):
        def loss_of(params):
            policy = nnx.merge(graphdef, params, rest, copy=True)
            losses = policy.loss(observation, arrays["actions"], key=key, train=True)
            return losses.mean(), nnx.state(policy, nnx.Not(nnx.Param))

        (loss, rest), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), rest, state, loss

    compiled_step = jax.jit(step, donate_argnums=(0, 1, 2))
    carried = [jax.tree.map(jnp.copy, params), jax.tree.map(jnp.copy, rest)]
    carried.append(optimizer.init(carried[0]))
    keys = iter(jax.random.split(jax.random.key(0), settings.rounds + 1))
    flops = _flops(step, *carried, jax.random.key(0))

    def jax_side() -> float:
        *carried[:], loss = compiled_step(*carried, next(keys))
        return float(loss)

    sides["jax bfloat16" if settings.on_gpu else "jax float32"] = jax_side
    return sides, flops


def _without_fast_path(call: Callable[..., Any], *arguments: Any) -> Any:
    """Calls with torch's fused encoder layer off: its shapes are wrong for the compiler (seen with torch 2.13)."""
    import torch

    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return call(*arguments)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def _compile_parts(module: Any) -> Any:
    """The policy with both parts behind `torch.compile`, sharing its parameters."""
    import copy

    import torch

    compiled = copy.copy(module)
    compiled._modules = dict(module._modules)
    for part in ("sensor_encoder", "action_expert"):
        if compiled._modules[part] is not None:
            compiled._modules[part] = torch.compile(compiled._modules[part])
    return compiled


def _flops(function: Callable[..., Any], *arguments: Any) -> float:
    """XLA's count of the floating-point operations of a function without loops."""
    analysis = jax.jit(function).lower(*arguments).cost_analysis() or {}
    return float(analysis.get("flops", 0.0))


def _errors(case: str, outputs: dict[str, Any], agreement: float) -> dict[str, float]:
    """Largest difference to PyTorch eager, as a share of its largest value; random chains are not compared."""
    if case in ("train", "ddpm"):
        return {}
    expected = outputs["torch eager"]
    scale = np.abs(expected).max()
    errors = {name: float(np.abs(output - expected).max() / scale) for name, output in outputs.items()}
    if errors["jax float32"] > agreement:
        raise RuntimeError(
            f"{case}: JAX and PyTorch differ by {errors['jax float32']:.1e} of the largest value"
        )
    return errors
