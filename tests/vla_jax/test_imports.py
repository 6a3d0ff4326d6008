"""What importing pulls in: no torch outside the backbone and the checkpoint importer, nothing at all up front."""

import subprocess
import sys

import pytest

from tests.commands import REPOSITORY


def modules_after(statement):
    """Returns the names of all modules a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())


def test_the_package_alone_is_light():
    assert not modules_after("import vla_jax") & {"torch", "transformers", "jax", "numpy"}


@pytest.mark.parametrize(
    "statement",
    [
        "import vla_jax; vla_jax.InsertionPolicy, vla_jax.evaluation, vla_jax.interop.load_reference",
        "import experiments.train, experiments.evaluate, experiments.prepare, experiments.export, experiments.demo",
        "import experiments.inspect",
    ],
)
def test_torch_is_imported_only_when_it_is_used(statement):
    assert not modules_after(statement) & {"torch", "transformers"}


def test_the_feature_store_needs_numpy_only():
    loaded = modules_after("import feature_cache.store, feature_cache.keys")
    assert "numpy" in loaded
    assert not loaded & {"torch", "transformers", "jax", "flax"}


def test_names_are_found_and_others_are_not():
    import vla_jax

    assert vla_jax.UserError.__name__ == "UserError"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vla_jax.nonsense
