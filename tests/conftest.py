"""Settings of every test."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

# The tests' networks are tiny and compiled often, in this process and in the commands it starts: compile each once,
# keep it for the next session, and do without the optimisations that only long runs pay back.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# The last flags halve the time again, where they were tried: XLA ends a process that is given one it does not know.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + (
        " --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false"
        if version("jaxlib").startswith("0.10.")
        else ""
    ),
)
os.environ["JAX_PLATFORMS"] = "cpu"

import hypothesis
import jax
import pytest

# How long an example takes says something about the machine, and nothing about the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
jax.config.update(
    "jax_numpy_rank_promotion", "raise"
)  # No silent broadcasting between arrays of different rank.

_COMPILED = Path(__file__).parent.parent / ".jax_cache"
_MOST_COMPILED = 2 * 2**30
_LESS_FUSED = "--xla_cpu_use_fusion_emitters=false"


def pytest_configure(config: pytest.Config) -> None:
    """Forgets what was compiled once it is much: programs of code as it no longer is are never asked for again."""
    is_controller = not hasattr(config, "workerinput")
    if is_controller and sum(path.stat().st_size for path in _COMPILED.glob("*")) > _MOST_COMPILED:
        shutil.rmtree(_COMPILED, ignore_errors=True)


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test that compares two programs' roundings in a process whose XLA fuses as it does for users."""
    flags = os.environ["XLA_FLAGS"].split()
    if pyfuncitem.get_closest_marker("all_fusions") is None or _LESS_FUSED not in flags:
        return None
    fused = " ".join(flag for flag in flags if flag != _LESS_FUSED)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", pyfuncitem.nodeid],
        cwd=pyfuncitem.config.rootpath,
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
        | {"XLA_FLAGS": fused},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return True
