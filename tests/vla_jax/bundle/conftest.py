"""Compiles with few optimisations, as beside the policies themselves."""

from tests.vla_jax.policy.conftest import quick_compilation

__all__ = ["quick_compilation"]
