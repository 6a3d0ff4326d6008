"""The door to action heads: what a head must do.

A head turns the condition (one vector for each observation, made by the fusion) into a chunk of normalised actions.
To add one, write a `HeadConfig` with a `kind` of its own and an `ActionHead`, and put `register_head` over the
configuration (both in `vla_jax.heads.head_config`); recipes, training, checkpoints, evaluation and the robot then know
it by its kind.
"""

from flax import nnx
from jaxtyping import Array, Float, Key

from vla_jax.heads.head_config import Sampling
from vla_jax.heads.prefix import Prefix
from vla_jax.models.dropout import DropoutKey


class ActionHead(nnx.Module):
    """Predicts chunks of normalised actions; axes: b batch, e condition, h horizon, a action dimensions.

    Whatever a head draws comes from the keys it is given. previous_chunk: actions of the past, normalised; None
    where there are none, which only heads refuse whose configuration `needs_previous_chunk`.
    """

    def loss(
        self,
        condition: Float[Array, "b e"],
        actions: Float[Array, "b h a"],
        *,
        keys: Key[Array, "2"],
        dropout_key: DropoutKey = None,
        previous_chunk: Float[Array, "b h a"] | None = None,
    ) -> Float[Array, " b"]:
        """Returns the error of each sample, mean over horizon and dimensions.

        keys: for what the loss draws, a prefix of the actions too where the head learns to go on from one.
        dropout_key: None drops nothing (evaluation).
        """
        raise NotImplementedError

    def sample(
        self,
        condition: Float[Array, "b e"],
        *,
        keys: Key[Array, " b"] | None,
        previous_chunk: Float[Array, "b h a"] | None = None,
        sampling: Sampling | None = None,
        prefix: Prefix | None = None,
    ) -> Float[Array, "b h a"]:
        """Predicts actions, in evaluation mode.

        keys: one for each row, so that a row's draws do not depend on its batch; None where nothing is drawn.
        sampling: of `HeadConfig.sampling`; None takes the configuration's own.
        prefix: actions that are planned already. Only heads are called with it whose configuration has a
            `longest_prefix`, or `can_be_guided`; others need not take it.
        """
        raise NotImplementedError
