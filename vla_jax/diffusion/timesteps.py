"""Which steps a sampler visits, and how the network is told about a step."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

Spacing = Literal["trailing", "leading", "linspace"]

MAX_PERIOD = 10_000.0


def sampling_timesteps(total: int, steps: int, spacing: Spacing) -> np.ndarray:
    """The int64 [steps] steps in [0, total) that a sampler visits, noisiest first.

    trailing: from the last step, total / steps apart. leading: multiples of total // steps from 0, so it starts
    below the last step unless steps = total. linspace: evenly from the last to the first. Names and formulas as in
    table 2 of Lin et al. 2024 (arXiv:2305.08891).

    Raises:
        ValueError: steps is not in [1, total].
    """
    if not 1 <= steps <= total:
        raise ValueError(f"{steps} sampling steps of a diffusion of {total}; choose 1 to {total}")
    if spacing == "leading":
        return (np.arange(steps) * (total // steps))[::-1].astype(np.int64)
    if spacing == "trailing":
        return np.round(total - np.arange(steps) * (total / steps)).astype(np.int64) - 1
    return np.round(np.linspace(0, total - 1, steps))[::-1].astype(np.int64)


def timestep_embedding(t: Real[Array, " n"], width: int) -> Float[Array, "n width"]:
    """Sinusoidal embedding, sines then cosines, of frequencies 10000^(-i / (width/2 - 1)) (Vaswani et al. 2017)."""
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-np.log(MAX_PERIOD) / (half - 1)))
    angles = t.astype(jnp.float32)[:, None] * jnp.asarray(frequencies)[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
