"""A CPU is used on purpose or where there is nothing else, never in silence beside a GPU."""

from pathlib import Path

import pytest

from vla_jax.errors import UserError
from vla_jax.training.devices import refuse_silent_cpu


@pytest.fixture
def beside_a_gpu(monkeypatch):
    """A machine whose GPU this process's JAX does not see."""
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([self / "nvidia0"]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)


def test_a_gpu_that_jax_does_not_see_is_told(beside_a_gpu):
    with pytest.raises(UserError, match=r"JAX sees only the CPU.*JAX_PLATFORMS=cpu"):
        refuse_silent_cpu()


@pytest.mark.parametrize(("name", "value"), [("JAX_PLATFORMS", "cpu"), ("CUDA_VISIBLE_DEVICES", "")])
def test_the_cpu_can_be_asked_for(beside_a_gpu, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    refuse_silent_cpu()


def test_a_machine_without_a_gpu_is_fine(monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    refuse_silent_cpu()
