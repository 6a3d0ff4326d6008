"""Predicting a batch: the same for held-out errors in training, for evaluation and on the robot."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vla_jax.contracts.observation import ArrayLike, Observation
from vla_jax.heads.head_config import Sampling
from vla_jax.policy.network import PolicyNetwork
from vla_jax.preprocessing.preprocessor import Preprocessor


def predict_batch(
    network: PolicyNetwork,
    preprocessor: Preprocessor,
    observation: Observation,
    keys: Key[Array, " b"] | None,
    sampling: Sampling | None = None,
) -> Float[Array, "b h a"]:
    """Returns the actions that follow each observation, both in recorded units; traceable. Promised actions come back
    as they were given.

    keys: one for each row (`row_keys`). sampling: None takes the configuration's own.
    """
    actions = network.sample(preprocessor.observe(observation), keys=keys, sampling=sampling)
    actions = preprocessor.decode_actions(actions)
    if observation.prefix is None:
        return actions
    index = jnp.arange(actions.shape[1])[None, :, None]
    return jnp.where(
        index < jnp.asarray(observation.prefix_length)[:, None, None], observation.prefix, actions
    )


def row_keys(key: Key[Array, ""], rows: Int[ArrayLike, " b"]) -> Key[Array, " b"]:
    """Returns a key for each row, of the key and the row's number alone: of its tick, in held-out errors."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(rows).astype(jnp.uint32))
