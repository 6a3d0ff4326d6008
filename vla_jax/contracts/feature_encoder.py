"""From pictures and a prompt to the slots that a policy reads."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float

from vla_jax.contracts.specs import FeatureSpec


class FeatureEncoder(Protocol):
    """A frozen backbone with its processor, pooling and slot layout; `feature_cache.encoder` has the real one."""

    spec: FeatureSpec

    def encode(
        self, prompt: str, images: Mapping[str, Any]
    ) -> tuple[Float[np.ndarray, "s v"], Bool[np.ndarray, " s"]]:
        """Returns one record's features in the policy's slots, and which slots are there.

        images: view → picture (uint8 [height, width, 3], PIL, or the bytes of an image file); a view that is absent
        is masked.
        """

    def encode_batch(
        self, observations: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> tuple[Float[np.ndarray, "n s v"], Bool[np.ndarray, "n s"]]:
        """Returns the features of several records, given as prompt and pictures, at once."""
