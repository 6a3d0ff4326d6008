"""Policies from and to the PyTorch reference's checkpoints."""

from vla_jax.interop.infer import ReferenceOptions
from vla_jax.interop.reference_policy import ReferencePolicy, load_reference

__all__ = ["ReferenceOptions", "ReferencePolicy", "load_reference"]
