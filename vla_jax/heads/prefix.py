"""Actions of a chunk that are promised to the robot before the chunk is predicted: a head goes on from them.

Heads trained with `prefix_max` are given them clean (training-time real-time chunking: Black et al. 2025,
arXiv:2512.05964): in training the first d actions of each sample's answer, d drawn from 0 to `prefix_max`, and the loss
leaves them out.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


@dataclass(frozen=True)
class Prefix:
    """Normalised actions from the chunk's first tick on; b batch, h horizon, a action dimensions."""

    actions: Float[Array, "b h a"]
    """What is planned; anything beyond `planned`."""
    promised: Int[Array, " b"]
    """How many of them will be executed, whatever the head predicts."""
    planned: Int[Array, " b"]
    """How many there are, promised ones and others; only guided sampling looks at the others."""

    @property
    def given(self) -> Bool[Array, "b h"]:
        """Which actions of the chunk are promised."""
        return jnp.arange(self.actions.shape[1])[None] < self.promised[:, None]

    def put_into(self, chunk: Float[Array, "b h a"]) -> Float[Array, "b h a"]:
        """Returns a chunk that begins with the promised actions."""
        return jnp.where(self.given[..., None], self.actions, chunk)


def draw_prefix(key: Key[Array, ""], actions: Float[Array, "b h a"], longest: int) -> Prefix | None:
    """Draws how much of the answer each sample is given: 0 to `longest` actions; None for longest 0.

    d actions with a probability in proportion to exp(−d), as in the authors' program for Kinetix: of most samples all
    has to be told by what was observed.
    """
    if not longest:
        return None
    promised = jax.random.categorical(key, -jnp.arange(longest + 1.0), shape=actions.shape[:1])
    return Prefix(actions, promised, promised)


def mean_of_the_rest(error: Float[Array, "b h a"], prefix: Prefix | None) -> Float[Array, " b"]:
    """The mean of each sample's errors over horizon and dimensions, those of the promised actions left out."""
    if prefix is None:
        return error.mean(axis=(1, 2))
    rest = ~prefix.given
    return jnp.where(rest[..., None], error, 0.0).mean(axis=2).sum(axis=1) / rest.sum(axis=1)
