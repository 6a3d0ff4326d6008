"""Weights of the samples in the training loss."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def sample_weights(
    confidence: Float[Array, " b"],
    has_sensor: Bool[Array, " b"],
    *,
    sensor_loss_weight: float,
    normalise: bool,
) -> Float[Array, " b"]:
    """Returns confidence × (sensor_loss_weight with sensor, else 1); divided by the batch's mean when `normalise`.

    The reference normalises for regression and not for diffusion.
    """
    weights = confidence * jnp.where(has_sensor, sensor_loss_weight, 1.0)
    return weights / jnp.mean(weights) if normalise else weights
