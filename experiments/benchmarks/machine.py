"""What a figure depends on beside the code: the processors, how busy they are, the versions, the seat of PyTorch."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from vla_jax.errors import UserError
from vla_jax.optional_torch import import_torch


def processors() -> int:
    """Returns how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def conditions(*packages: str) -> dict[str, Any]:
    """Returns the machine's description and the packages' versions; with "torch", how many threads it takes."""
    described: dict[str, Any] = {
        "machine": _processor(),
        "cores": processors(),
        "load_average": os.getloadavg(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
    if "torch" in packages:
        described["torch_threads"] = import_torch("the benchmark").get_num_threads()
    return described


def torch_beside_jax(*, on_gpu: bool) -> ModuleType:
    """Returns the module `torch`, on the device that JAX computes on.

    Raises:
        UserError: it is not installed, or sees no GPU where JAX does.
    """
    torch = import_torch("the benchmark")
    if on_gpu and not torch.cuda.is_available():
        raise UserError(
            "JAX sees a GPU and PyTorch does not; install a CUDA build of torch, or set JAX_PLATFORMS=cpu"
        )
    return torch


def _processor() -> str:
    """Returns the processor's name; Python itself knows only the architecture on Linux."""
    information = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", information.read_text()) if information.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()
