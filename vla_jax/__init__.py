"""vla-jax: JAX/Flax policy heads for robots that insert needles by sight, touch and light.

Public names load what they need when they are first used: `import vla_jax` alone imports neither JAX nor torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_SUBPACKAGES = ("data", "diffusion", "evaluation", "inference", "inspection", "interop", "models", "training")
_NAMES = {"InsertionPolicy": "vla_jax.inference.policy", "UserError": "vla_jax.errors"}

__all__ = [*_NAMES, *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"vla_jax.{name}")
    raise AttributeError(f"module 'vla_jax' has no attribute {name!r}")
