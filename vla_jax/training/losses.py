"""Weights of the samples in the training loss."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vla_jax.contracts.observation import ArrayLike


def sample_weights(
    confidence: Float[ArrayLike, " b"],
    has_sensor: Bool[ArrayLike, " b"] | None,
    *,
    sensor_loss_weight: float,
    normalise: bool,
) -> Float[Array, " b"]:
    """Returns confidence × (sensor_loss_weight with sensor, else 1); divided by the batch's mean when `normalise`.

    has_sensor: None where the data have no sensor, or the network does not read it. The reference normalises for
        regression and not for diffusion.
    """
    weights = jnp.asarray(confidence)
    if has_sensor is not None:
        weights = weights * jnp.where(has_sensor, sensor_loss_weight, 1.0)
    return weights / jnp.mean(weights) if normalise else weights
