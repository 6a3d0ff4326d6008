"""A trained network in another compute type, for inference."""

from dataclasses import replace
from typing import Literal

import jax.numpy as jnp
from flax import nnx

from vla_jax.policy.network import PolicyNetwork, abstract_network


def with_dtype(network: PolicyNetwork, dtype: Literal["float32", "bfloat16"]) -> PolicyNetwork:
    """Returns a copy that computes in `dtype` and stores its weight matrices so.

    Small-batch inference is bound by reading the weights, so bfloat16 halves its time where the device multiplies
    bfloat16 natively. Norms, biases and BatchNorm's moments stay float32. The copy is not for training.
    """
    copy = abstract_network(replace(network.config, dtype=dtype))
    source = dict(nnx.to_flat_state(nnx.state(network)))
    for path, variable in nnx.to_flat_state(nnx.state(copy)):
        value = source[path][...]
        is_matrix = path[-1] == "kernel"
        variable.set_value(value.astype(jnp.dtype(dtype)) if is_matrix else value)
    return copy
