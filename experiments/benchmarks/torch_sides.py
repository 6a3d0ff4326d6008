"""PyTorch's side of the heads benchmark: inference and one update, eager or through `torch.compile`."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from experiments.benchmarks import torch_heads
from experiments.benchmarks.networks import (
    BETAS,
    CLIP_NORM,
    LEARNING_RATE,
    WEIGHT_DECAY,
    InferenceCase,
    Inputs,
)
from vla_jax.diffusion.schedule import Schedule


def inference_side(
    case: InferenceCase,
    module: torch_heads.Policy,
    inputs: Inputs,
    schedule: Schedule,
    *,
    timesteps: Sequence[int],
    compiled: bool,
) -> Callable[[], np.ndarray]:
    """Returns a call that predicts actions (b, h, a). timesteps: that DDIM visits, the noisiest first."""
    device = next(module.parameters()).device
    vl, sensor, noise = _to(device, inputs.vl, inputs.sensor, inputs.noise)
    betas, cumulative = _to(device, schedule.betas, schedule.alphas_cumprod)
    policy = _compiled(module) if compiled else module

    def actions() -> Tensor:
        if case == "regression":
            return policy.action_expert(vl, torch.zeros_like(noise), policy.encode(sensor))[0]
        if case == "ddim":
            return torch_heads.ddim_sample(policy, cumulative, list(timesteps), noise, vl, sensor)
        return torch_heads.ddpm_sample(policy, betas, noise, vl, sensor)

    def call() -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            return actions().float().cpu().numpy()

    return (lambda: _without_fast_path(call)) if compiled else call


def training_side(
    module: torch_heads.Policy, inputs: Inputs, schedule: Schedule, *, compiled: bool
) -> Callable[[], np.ndarray]:
    """Returns a call that makes one update and returns its loss, going on from its own last state."""
    device = next(module.parameters()).device
    vl, sensor, actions, noise, t = _to(
        device, inputs.vl, inputs.sensor, inputs.actions, inputs.noise, inputs.t.astype(np.int64)
    )
    roots = _to(device, schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod)
    signal, sigma = (root[t, None, None] for root in roots)
    policy = (_compiled(module) if compiled else copy.deepcopy(module)).train()
    parameters = list(policy.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)

    def update() -> np.ndarray:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            x_t = signal * actions + sigma * noise
            prediction = policy.action_expert(x_t, t, vl, policy.encode(sensor))
        loss = torch.nn.functional.mse_loss(prediction.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        return loss.detach().cpu().numpy()

    return update


def _to(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(np.asarray(array)).to(device) for array in arrays]


def _without_fast_path(call: Callable[[], np.ndarray]) -> np.ndarray:
    """Calls with torch's fused encoder layer off: its shapes are wrong for the compiler (seen with torch 2.13)."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return call()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def _compiled(module: torch_heads.Policy) -> torch_heads.Policy:
    """Returns a copy with both parts behind `torch.compile`."""
    compiled = copy.deepcopy(module)
    for part in compiled.children():
        part.compile()
    return compiled
