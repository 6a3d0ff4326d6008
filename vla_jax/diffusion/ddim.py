"""DDIM sampling (Song et al. 2021, arXiv:2010.02502)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vla_jax.diffusion.schedule import Prediction, Schedule, split_prediction, step_constants


def ddim_coefficients(
    schedule: Schedule, timesteps: np.ndarray, *, eta: float = 0.0
) -> dict[str, np.ndarray]:
    """Constants of each update from a time step to the next one of `timesteps`, the last to the data itself.

    timesteps: int [n], decreasing. eta: 0 deterministic, 1 as noisy as DDPM.
    """
    previous = np.append(timesteps[1:], -1)
    alpha, alpha_prev = (
        schedule.alphas_cumprod[timesteps],
        np.where(previous < 0, 1, schedule.alphas_cumprod[previous]),
    )
    alpha, alpha_prev = alpha.astype(np.float32), alpha_prev.astype(np.float32)
    one = np.float32(1)
    sigma = np.float32(eta) * np.sqrt(
        (one - alpha_prev) / (one - alpha) * (one - alpha / alpha_prev)
    )  # eq. 16
    return step_constants(schedule, timesteps) | {
        "signal_prev": np.sqrt(alpha_prev),
        "direction": np.sqrt(np.maximum(one - alpha_prev - sigma**2, 0)),
        "sigma": sigma,
    }


def ddim_step(
    x_t: Float[Array, "b h a"],
    output: Float[Array, "b h a"],
    constants: dict[str, Float[Array, ""]],
    *,
    prediction: Prediction = "epsilon",
    clip: float | None = 1.0,
    noise: Float[Array, "b h a"] | None = None,
) -> Float[Array, "b h a"]:
    """One update (eq. 12) by the network's output.

    constants: one row of `ddim_coefficients`. clip: bound of x_0, None for none; the noise estimate stays the
    unclipped one. noise: standard normal, needed where sigma > 0.
    """
    x_0, epsilon = split_prediction(prediction, x_t, output, constants)
    if clip is not None:
        x_0 = jnp.clip(x_0, -clip, clip)
    x_prev = constants["signal_prev"] * x_0 + constants["direction"] * epsilon
    return x_prev if noise is None else x_prev + constants["sigma"] * noise


def ddim_sample(
    denoise: Callable[[Float[Array, "b h a"], Any], Float[Array, "b h a"]],
    x_T: Float[Array, "b h a"],
    schedule: Schedule,
    timesteps: np.ndarray,
    *,
    per_step: Any,
    eta: float = 0.0,
    prediction: Prediction = "epsilon",
    clip: float | None = 1.0,
    noise: Float[Array, "n b h a"] | None = None,
) -> Float[Array, "b h a"]:
    """Walks from x_T through `timesteps` to the data in one scan.

    denoise: (x, row of `per_step`) → the network's output. per_step: a tree of arrays with one row per time step,
    where a caller keeps what depends on the step but not on x. noise: standard normal, one per step; needed for
    eta > 0.
    """
    if eta > 0 and noise is None:
        raise ValueError("DDIM with eta > 0 draws noise at each step; give it")
    constants = ddim_coefficients(schedule, timesteps, eta=eta)
    draws = noise if eta > 0 else None

    def update(x, step):
        row, per_step_row, draw = step
        output = denoise(x, per_step_row).astype(x.dtype)
        return ddim_step(x, output, row, prediction=prediction, clip=clip, noise=draw), None

    x_0, _ = jax.lax.scan(update, x_T, (constants, per_step, draws), length=len(timesteps))
    return x_0
