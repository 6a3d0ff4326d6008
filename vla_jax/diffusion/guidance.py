"""Real-time chunking (Black, Galliker and Levine 2025, arXiv:2506.07339): a chunk is drawn to the plan that it follows.

While a chunk is denoised, the gradient of its distance to what is planned already is added to the estimate of the clean
actions (pseudoinverse guidance, Song et al. 2023). The network needs no training for that, but each step of it then
costs a backward pass too.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

AuxT = TypeVar("AuxT")

MAX_WEIGHT = 5.0
"""Bound β of the guidance's weight, as in the paper: without, it is infinite at the noise."""


def plan_weights(
    promised: Int[Array, " b"], planned: Int[Array, " b"], horizon: int
) -> Float[Array, "b horizon"]:
    """How much each action of a chunk is drawn to the plan (eq. 5): 1 for those promised, which nobody can change any
    more, then falling to 0 at the end of what is planned.

    promised, planned: numbers of actions, from the chunk's first one on; promised ≤ planned ≤ horizon.
    """
    index, promised, planned = jnp.arange(horizon)[None], promised[:, None], planned[:, None]
    falling = jnp.clip((planned - index) / (planned - promised + 1), 0.0, 1.0)
    return jnp.where(index < promised, 1.0, falling * jnp.expm1(falling) / (jnp.e - 1.0))


def guidance(
    estimate: Callable[[Float[Array, "b h a"]], tuple[Float[Array, "b h a"], AuxT]],
    x: Float[Array, "b h a"],
    signal: Any,
    sigma: Any,
    plan: Float[Array, "b h a"],
    weights: Float[Array, "b h"],
) -> tuple[Float[Array, "b h a"], AuxT]:
    """(what to add to the clean actions that x = signal · actions + sigma · noise implies, what `estimate` returns
    beside them).

    estimate: x → the clean actions as the network sees them, and anything; rows must not depend on each other.
    signal, sigma: shares of actions and noise at this step. A flow's are t and 1 − t, and the result is (1 − t) times
        what the paper's eq. 2 adds to the velocity. A diffusion is the same flow at another scale and pace, which these
        two say.
    """
    clean, pull, beside = jax.vjp(estimate, x, has_aux=True)
    weights = weights[..., None]
    # What is not planned may hold anything.
    (correction,) = pull(jnp.where(weights > 0.0, weights * (plan - clean), 0.0))
    weight = jnp.minimum(MAX_WEIGHT, (signal**2 + sigma**2) / jnp.maximum(signal * sigma, 1e-8))
    return sigma * weight * correction, beside
