"""PyTorch, which only reading its files, exporting and comparing with it need."""

from types import ModuleType

from vla_jax.errors import UserError


def import_torch(needed_by: str) -> ModuleType:
    """Returns the module `torch`.

    needed_by: who asks, as the message begins.

    Raises:
        UserError: it is not installed; with the command that installs it.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{needed_by} needs torch: pip install 'vla-jax[export]'") from error
    return torch
