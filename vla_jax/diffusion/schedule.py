"""The noise schedule of a diffusion, and the algebra between x_t, x_0, the noise and v."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Prediction = Literal["epsilon", "sample", "v"]

COSINE_OFFSET = 0.008
BETA_RANGE = (1e-4, 0.9999)
# 1 - alphas_cumprod, floored: the variance left at a step is never below what float32 resolves beside 1.
MIN_LOG_VARIANCE = 1e-20


@dataclass(frozen=True, eq=False)
class Schedule:
    """Constants of a diffusion of T steps; every array is float32 [T], index t = 0 is the least noisy step."""

    betas: np.ndarray
    alphas: np.ndarray
    alphas_cumprod: np.ndarray
    alphas_cumprod_prev: np.ndarray
    sqrt_alphas_cumprod: np.ndarray
    sqrt_one_minus_alphas_cumprod: np.ndarray
    sqrt_recip_alphas: np.ndarray
    sqrt_recip_alphas_cumprod: np.ndarray
    sqrt_recipm1_alphas_cumprod: np.ndarray
    posterior_variance: np.ndarray
    posterior_log_variance_clipped: np.ndarray

    @property
    def steps(self) -> int:
        """Number T of steps."""
        return len(self.betas)


@lru_cache(maxsize=16)
def cosine_schedule(steps: int) -> Schedule:
    """The cosine schedule, s = 0.008, betas clipped to [1e-4, 0.9999] (Nichol & Dhariwal 2021, eq. 17).

    Computed in float32 in the order of the reference, because a network trained with these roundings is sampled
    with them: at the last step they are 1e-4 of the value.
    """
    position = np.linspace(0, steps, steps + 1, dtype=np.float64).astype(np.float32)
    angle = (position / np.float32(steps) + np.float32(COSINE_OFFSET)) / np.float32(1 + COSINE_OFFSET)
    cumulative = np.cos(angle * np.float32(np.pi) * np.float32(0.5)) ** 2
    cumulative = cumulative / cumulative[0]
    smallest, largest = (np.float32(bound) for bound in BETA_RANGE)
    betas = np.clip(1 - cumulative[1:] / cumulative[:-1], smallest, largest)
    return schedule_from_betas(betas)


def schedule_from_betas(betas: np.ndarray) -> Schedule:
    """All constants that follow from the betas (float32 [T]), in float32."""
    betas = np.asarray(betas, np.float32)
    one = np.float32(1)
    alphas = one - betas
    cumprod = np.cumprod(alphas, dtype=np.float32)
    cumprod_prev = np.concatenate([np.ones(1, np.float32), cumprod[:-1]])
    variance = betas * (one - cumprod_prev) / (one - cumprod)
    return Schedule(
        betas=betas,
        alphas=alphas,
        alphas_cumprod=cumprod,
        alphas_cumprod_prev=cumprod_prev,
        sqrt_alphas_cumprod=np.sqrt(cumprod),
        sqrt_one_minus_alphas_cumprod=np.sqrt(one - cumprod),
        sqrt_recip_alphas=np.sqrt(one / alphas),
        sqrt_recip_alphas_cumprod=np.sqrt(one / cumprod),
        sqrt_recipm1_alphas_cumprod=np.sqrt(one / cumprod - one),
        posterior_variance=variance,
        posterior_log_variance_clipped=np.log(np.maximum(variance, np.float32(MIN_LOG_VARIANCE))),
    )


def at(constants: np.ndarray, t: Int[Array, " b"], like: Float[Array, "b h a"]) -> Float[Array, "b 1 1"]:
    """The constant of each sample's step, shaped to multiply `like`."""
    return jnp.asarray(constants)[t].reshape(-1, *(1,) * (like.ndim - 1))


def add_noise(
    schedule: Schedule, x_0: Float[Array, "b h a"], t: Int[Array, " b"], noise: Float[Array, "b h a"]
) -> Float[Array, "b h a"]:
    """Draws x_t from x_0 and standard normal noise (q_sample; Ho et al. 2020, eq. 4)."""
    signal = at(schedule.sqrt_alphas_cumprod, t, x_0)
    return signal * x_0 + at(schedule.sqrt_one_minus_alphas_cumprod, t, x_0) * noise


def predict_x0(
    schedule: Schedule, x_t: Float[Array, "b h a"], t: Int[Array, " b"], noise: Float[Array, "b h a"]
) -> Float[Array, "b h a"]:
    """The clean actions that x_t and an estimate of its noise imply (Ho et al. 2020, eq. 15), unclipped."""
    signal = at(schedule.sqrt_recip_alphas_cumprod, t, x_t)
    return signal * x_t - at(schedule.sqrt_recipm1_alphas_cumprod, t, x_t) * noise


def target(
    schedule: Schedule,
    prediction: Prediction,
    x_0: Float[Array, "b h a"],
    t: Int[Array, " b"],
    noise: Float[Array, "b h a"],
) -> Float[Array, "b h a"]:
    """What the network is trained to predict; v as in Salimans & Ho 2022, appendix D."""
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return x_0
    signal = at(schedule.sqrt_alphas_cumprod, t, x_0)
    return signal * noise - at(schedule.sqrt_one_minus_alphas_cumprod, t, x_0) * x_0


def split_prediction(
    prediction: Prediction,
    x_t: Float[Array, "b h a"],
    output: Float[Array, "b h a"],
    constants: dict[str, Float[Array, ""]],
) -> tuple[Float[Array, "b h a"], Float[Array, "b h a"]]:
    """(x_0, noise) that a network output implies at one step, whose four constants are given by name."""
    signal, sigma = constants["sqrt_alphas_cumprod"], constants["sqrt_one_minus_alphas_cumprod"]
    if prediction == "epsilon":
        recip, recipm1 = constants["sqrt_recip_alphas_cumprod"], constants["sqrt_recipm1_alphas_cumprod"]
        return recip * x_t - recipm1 * output, output
    if prediction == "sample":
        return output, (x_t - signal * output) / sigma
    return signal * x_t - sigma * output, signal * output + sigma * x_t


def step_constants(schedule: Schedule, timesteps: np.ndarray) -> dict[str, np.ndarray]:
    """The constants that `split_prediction` needs, one row per time step, to be scanned over."""
    names = (
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
    )
    return {name: getattr(schedule, name)[timesteps] for name in names}
