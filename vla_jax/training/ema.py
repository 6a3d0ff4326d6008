"""Exponential moving average of the parameters, with warm-up."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def update_ema(ema: Any, params: Any, step: Int[Array, ""], decay: float) -> Any:
    """Moves the averaged parameters towards `params` after update number `step` (0, 1, …).

    The decay rises as (1 + step) / (10 + step) up to `decay`, so that the average forgets the initial weights
    quickly (the warm-up of TensorFlow's ExponentialMovingAverage).
    """
    warm = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda average, value: average + (1.0 - warm) * (value - average), ema, params)
