"""PyTorch, which only reading its files, exporting and comparing with it need."""

import importlib.util
from types import ModuleType

from vla_jax.errors import UserError

_INSTALL = "install it with `pip install -e '.[export]'` in your clone of vla-jax"


def import_torch(needed_by: str) -> ModuleType:
    """Returns the module `torch`.

    needed_by: who asks, as the message begins.

    Raises:
        UserError: it is not installed; with the command that installs it.
    """
    require(needed_by, "torch")
    import torch

    return torch


def require(needed_by: str, *modules: str) -> None:
    """Looks for modules without importing them, which takes seconds.

    needed_by: who asks, as the message begins.

    Raises:
        UserError: one is not installed; with the command that installs it.
    """
    missing = [name for name in modules if not _is_installed(name)]
    if missing:
        raise UserError(f"{needed_by} needs {' and '.join(missing)}: {_INSTALL}")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # What a program has blocked has no spec.
        return False
