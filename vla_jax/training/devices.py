"""Whether JAX runs on the devices that the user means."""

import os
from pathlib import Path

import jax

from vla_jax.errors import UserError


def refuse_silent_cpu() -> None:
    """Refuses to compute on the CPU although an NVIDIA GPU is visible, unless JAX_PLATFORMS asks for it.

    JAX without its CUDA packages falls back to the CPU with a warning at most, and a night is lost.

    Raises:
        UserError: says what to install, and how to use the CPU on purpose.
    """
    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS"):
        return
    if any(Path("/dev").glob("nvidia[0-9]*")) and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        raise UserError(
            "this machine has an NVIDIA GPU, but JAX sees only the CPU: install the CUDA build with "
            "`pip install 'vla-jax[cuda12]'` (or cuda13), or set JAX_PLATFORMS=cpu to train on the CPU"
        )
