"""vla-jax: JAX/Flax policy heads for robots that insert needles by sight, touch and light.

Public names load what they need when they are first used: `import vla_jax` alone imports neither JAX nor torch.
The rooms below, in the order in which they may import each other: docs/architecture.md.
"""

from vla_jax.lazy_names import lazy_names

__version__ = "0.1.0"

_PACKAGES = (
    "contracts",
    "data",
    "dataset",
    "diffusion",
    "evaluation",
    "heads",
    "interop",
    "models",
    "policy",
    "preprocessing",
    "recordings",
    "reference",
    "reporting",
    "storage",
    "training",
)
_NAMES = {
    "InsertionPolicy": "vla_jax.policy.insertion_policy",
    "UserError": "vla_jax.errors",
    **{name: f"vla_jax.{name}" for name in _PACKAGES},
}

__all__ = list(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
