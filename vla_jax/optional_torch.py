"""PyTorch, which only reading its files, exporting and comparing with it need."""

import importlib.util
from types import ModuleType

from vla_jax.errors import UserError


def import_torch(needed_by: str) -> ModuleType:
    """Returns the module `torch`.

    needed_by: who asks, as the message begins.

    Raises:
        UserError: it is not installed; with the command that installs it.
    """
    require(needed_by, "torch")
    import torch

    return torch


def require(needed_by: str, *modules: str, extra: str = "export") -> None:
    """Looks for modules without importing them, which takes seconds.

    needed_by: who asks, as the message begins. extra: of ours, that installs them.

    Raises:
        UserError: one is not installed; with the command that installs it.
    """
    missing = [name for name in modules if not _is_installed(name)]
    if missing:
        raise UserError(
            f"{needed_by} needs {' and '.join(missing)}: install it with `pip install -e '.[{extra}]'` in your "
            "clone of vla-jax"
        )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # What a program has blocked has no spec.
        return False
