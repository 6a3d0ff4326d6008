"""Flow matching along straight lines from noise to data (Lipman et al. 2023, arXiv:2210.02747), and Euler's steps.

Time t is 0 at the noise and 1 at the data, as in the paper of π0 (Black et al. 2024, arXiv:2410.24164); its published
program counts the other way.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

LAST_TIME = 0.999
"""No time is drawn beyond it (π0's s): nothing is left to learn there."""


def on_path(
    noise: Float[Array, "b h a"], actions: Float[Array, "b h a"], t: Float[Array, " b"]
) -> Float[Array, "b h a"]:
    """x_t = (1 − t) · noise + t · actions."""
    t = t[:, None, None]
    return (1.0 - t) * noise + t * actions


def path_velocity(noise: Float[Array, "b h a"], actions: Float[Array, "b h a"]) -> Float[Array, "b h a"]:
    """dx_t/dt, the same all along the path: what a flow's network learns the mean of."""
    return actions - noise


def draw_times(
    key: Key[Array, ""], count: int, *, alpha: float, beta: float, shift: float
) -> Float[Array, " n"]:
    """Draws the times to train at, in [0, LAST_TIME].

    alpha, beta: the share of noise, 1 − t / LAST_TIME, is drawn from Beta(alpha, beta); π0's Beta(1.5, 1) draws noisy
        times more often.
    shift: α of t ← t / (1 + (α − 1)(1 − t)), which draws noisy times more often still; 1 changes nothing. With uniform
        times and α = 4 it is the bias for one step of Chen et al. 2026 (arXiv:2606.05737).
    """
    t = 1.0 - jax.random.beta(key, alpha, beta, (count,), jnp.float32)
    return LAST_TIME * t / (1.0 + (shift - 1.0) * (1.0 - t))


def euler_times(steps: int) -> np.ndarray:
    """The times [n] at which Euler's steps begin, float32, the noise first."""
    return (np.arange(steps) / steps).astype(np.float32)


def euler_sample(
    velocity: Callable[[Float[Array, "b h a"], Any], Float[Array, "b h a"]],
    noise: Float[Array, "b h a"],
    steps: int,
    *,
    per_step: Any,
) -> Float[Array, "b h a"]:
    """Follows the flow from noise to data in equal steps, in one scan.

    velocity: (x, row of `per_step`) → dx/dt. per_step: a tree of arrays with one row for each of `euler_times`.
    """

    def advance(x, row):
        return x + velocity(x, row).astype(x.dtype) / steps, None

    return jax.lax.scan(advance, noise, per_step, length=steps)[0]
