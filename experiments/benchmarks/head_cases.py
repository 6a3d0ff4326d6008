"""The cases of the heads benchmark: one set of weights on both sides, the check that they agree, and the clock."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from experiments.benchmarks import jax_sides, torch_heads, torch_sides
from experiments.benchmarks.networks import (
    FLOW_STEPS,
    CaseName,
    InferenceCase,
    Inputs,
    Size,
    make_inputs,
    noise_schedule,
    policy_config,
)
from experiments.benchmarks.timing import Timing, clock, time_in_turn
from vla_jax.policy.network import PolicyNetwork
from vla_jax.reference.weights import network_from_weights

Sides = Mapping[str, Callable[[], np.ndarray]]

DDIM_STEPS = 10
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


@dataclass(frozen=True, kw_only=True)
class HeadTiming(Timing):
    """flops: arithmetic of one call, counted by XLA; error: largest difference to eager, None where not compared."""

    batch: int
    sensor_length: int
    first_call_s: float
    flops: float
    error: float | None


def run_case(case: CaseName, batch: int, sensor_length: int, settings: Settings) -> list[HeadTiming]:
    """Times all sides of a case, one call of each in turn.

    Raises:
        RuntimeError: the two sides do not compute the same.
    """
    if case in FLOW_STEPS:
        sides, flops = _flow_sides(case, batch, sensor_length, settings)
    else:
        config = policy_config(
            "regression" if case == "regression" else "diffusion", sensor_length, settings.size
        )
        torch.manual_seed(0)
        module = torch_heads.Policy(config).to("cuda" if settings.on_gpu else "cpu")
        weights = {name: tensor.cpu().numpy() for name, tensor in module.state_dict().items()}
        network = network_from_weights(config, weights)
        inputs = make_inputs(config, batch, sensor_length)
        if case == "train":
            sides, flops = _training_sides(module, network, inputs, settings)
        else:
            sides, flops = _inference_sides(case, module.eval(), network, inputs, settings)
    first, outputs = {}, {}
    for name, call in sides.items():
        first[name], outputs[name] = clock(call)
    errors = _errors(case, outputs, LOW_PRECISION_AGREEMENT if settings.on_gpu else AGREEMENT)
    return [
        HeadTiming(
            case=f"{case} b{batch} t{sensor_length}",
            side=name,
            seconds=seconds,
            amount=batch,
            unit="samples",
            batch=batch,
            sensor_length=sensor_length,
            first_call_s=first[name],
            flops=flops,
            error=errors.get(name),
        )
        for name, seconds in time_in_turn(sides, settings.rounds).items()
    ]


def matmul_rates(*, on_gpu: bool) -> dict[str, float]:
    """Returns GFLOP/s of a large square product in JAX: what the device gives at best."""
    width, rates = (8192 if on_gpu else 2048), {}
    for dtype in ("float32", "bfloat16"):
        x = jnp.ones((width, width), dtype)
        product = jax.jit(jnp.matmul)
        product(x, x).block_until_ready()
        seconds = time_in_turn({dtype: lambda p=product, x=x: p(x, x).block_until_ready()}, 3)[dtype]
        rates[dtype] = 2 * width**3 / min(seconds) / 1e9
    return rates


def _inference_sides(
    case: InferenceCase,
    module: torch_heads.Policy,
    network: PolicyNetwork,
    inputs: Inputs,
    settings: Settings,
) -> tuple[Sides, float]:
    schedule = noise_schedule(network.config)
    steps = DDIM_STEPS if case == "ddim" else schedule.steps
    timesteps = [index * (schedule.steps // steps) for index in reversed(range(steps))]
    sides: dict[str, Callable[[], np.ndarray]] = {}
    for compiled in (False, True) if settings.compile_torch else (False,):
        sides["torch.compile" if compiled else "torch eager"] = torch_sides.inference_side(
            case, module, inputs, schedule, timesteps=timesteps, compiled=compiled
        )
    sides |= _jax_sides(case, network, inputs, settings, steps)
    return sides, jax_sides.inference_flops(case, network, inputs, steps=steps)


def _jax_sides(
    case: InferenceCase, network: PolicyNetwork, inputs: Inputs, settings: Settings, steps: int
) -> Sides:
    dtypes: tuple[jax_sides.Dtype, ...] = ("float32", "bfloat16") if settings.bfloat16 else ("float32",)
    return {
        f"jax {dtype}": jax_sides.inference_side(case, network, inputs, steps=steps, dtype=dtype)
        for dtype in dtypes
    }


def _flow_sides(
    case: InferenceCase, batch: int, sensor_length: int, settings: Settings
) -> tuple[Sides, float]:
    """The sides of a case that PyTorch has no head for; what is timed does not depend on the weights."""
    config, steps = policy_config("flow", sensor_length, settings.size), FLOW_STEPS[case]
    inputs, network = make_inputs(config, batch, sensor_length), PolicyNetwork(config, rngs=nnx.Rngs(0))
    sides = _jax_sides(case, network, inputs, settings, steps)
    return sides, jax_sides.inference_flops(case, network, inputs, steps=steps)


def _training_sides(
    module: torch_heads.Policy, network: PolicyNetwork, inputs: Inputs, settings: Settings
) -> tuple[Sides, float]:
    schedule = noise_schedule(network.config)
    dtype: jax_sides.Dtype = "bfloat16" if settings.on_gpu else "float32"
    # One call to compile, then the rounds.
    ours, flops = jax_sides.training_side(network, inputs, calls=settings.rounds + 1, dtype=dtype)
    sides = {"torch eager": torch_sides.training_side(module, inputs, schedule, compiled=False)}
    if settings.compile_torch:
        sides["torch.compile"] = torch_sides.training_side(module, inputs, schedule, compiled=True)
    return {**sides, f"jax {dtype}": ours}, flops


def _errors(case: CaseName, outputs: Mapping[str, np.ndarray], agreement: float) -> dict[str, float]:
    """Largest difference to PyTorch eager, as a share of its largest value; random chains, and what PyTorch lacks, are
    not compared."""
    if case in ("train", "ddpm", *FLOW_STEPS):
        return {}
    expected = outputs["torch eager"]
    scale = np.abs(expected).max()
    errors = {name: float(np.abs(output - expected).max() / scale) for name, output in outputs.items()}
    if errors["jax float32"] > agreement:
        raise RuntimeError(
            f"{case}: JAX and PyTorch differ by {errors['jax float32']:.1e} of the largest value"
        )
    return errors
