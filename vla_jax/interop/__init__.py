"""Policies from the PyTorch reference's checkpoints, for those who compare with it (`vla_jax.reference`)."""

from vla_jax.lazy_names import lazy_names

_NAMES = {
    "ReferenceOptions": "vla_jax.reference.options",
    "ReferencePolicy": "vla_jax.reference.reference_policy",
    "load_reference": "vla_jax.reference.reference_policy",
}

__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
