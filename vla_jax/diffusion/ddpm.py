"""DDPM ancestral sampling (Ho et al. 2020, arXiv:2006.11239)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vla_jax.diffusion.schedule import (
    Prediction,
    Schedule,
    schedule_from_betas,
    split_prediction,
    step_constants,
)


def ddpm_coefficients(schedule: Schedule, timesteps: np.ndarray) -> dict[str, np.ndarray]:
    """Constants of each ancestral update; with fewer steps than T, those of the chain through `timesteps` alone
    (Nichol & Dhariwal 2021, section 4).

    timesteps: int [n], decreasing.
    """
    if len(timesteps) == schedule.steps:
        chain = schedule
    else:
        cumprod = schedule.alphas_cumprod[timesteps[::-1]].astype(np.float64)
        chain = schedule_from_betas(1 - cumprod / np.concatenate([[1.0], cumprod[:-1]]))
    index = np.arange(len(timesteps))[::-1]
    one = np.float32(1)
    remaining = one - chain.alphas_cumprod
    mean_x0 = chain.betas * np.sqrt(chain.alphas_cumprod_prev) / remaining  # eq. 7
    mean_xt = (one - chain.alphas_cumprod_prev) * np.sqrt(chain.alphas) / remaining
    # No noise is added on arriving at the data.
    deviation = np.where(np.arange(chain.steps) > 0, np.sqrt(chain.posterior_variance), 0).astype(np.float32)
    return step_constants(schedule, timesteps) | {
        "mean_x0": mean_x0[index],
        "mean_xt": mean_xt[index],
        "recip_alpha": chain.sqrt_recip_alphas[index],
        "noise_weight": (chain.betas / chain.sqrt_one_minus_alphas_cumprod)[index],
        "deviation": deviation[index],
    }


def ddpm_mean(
    x_t: Float[Array, "b h a"],
    output: Float[Array, "b h a"],
    constants: dict[str, Float[Array, ""]],
    *,
    prediction: Prediction = "epsilon",
    clip: float | None = 1.0,
) -> Float[Array, "b h a"]:
    """Mean of the reverse step's distribution.

    constants: one row of `ddpm_coefficients`. clip: bound of x_0 in the posterior's mean (eq. 7); None uses the
    noise form of the mean (eq. 11), which says the same without clipping.
    """
    x_0, epsilon = split_prediction(prediction, x_t, output, constants)
    if clip is None:
        return constants["recip_alpha"] * (x_t - constants["noise_weight"] * epsilon)
    return constants["mean_x0"] * jnp.clip(x_0, -clip, clip) + constants["mean_xt"] * x_t


def ddpm_sample(
    denoise: Callable[[Float[Array, "b h a"], Any], Float[Array, "b h a"]],
    x_T: Float[Array, "b h a"],
    schedule: Schedule,
    timesteps: np.ndarray,
    *,
    per_step: Any,
    noise: Float[Array, "n b h a"],
    prediction: Prediction = "epsilon",
    clip: float | None = 1.0,
) -> Float[Array, "b h a"]:
    """Walks from x_T through `timesteps` to the data in one scan.

    denoise, per_step: as for `ddim_sample`. noise: standard normal, one per step but the last, noisiest first.
    """
    constants = ddpm_coefficients(schedule, timesteps)
    draws = jnp.concatenate([noise, jnp.zeros((1, *x_T.shape), noise.dtype)])

    def update(x, step):
        row, per_step_row, draw = step
        output = denoise(x, per_step_row).astype(x.dtype)
        mean = ddpm_mean(x, output, row, prediction=prediction, clip=clip)
        return mean + row["deviation"] * draw, None

    x_0, _ = jax.lax.scan(update, x_T, (constants, per_step, draws), length=len(timesteps))
    return x_0
