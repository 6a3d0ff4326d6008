"""What importing pulls in: no torch outside the backbone and the checkpoint importer, nothing at all up front."""

import subprocess
import sys

import pytest

from tests.commands import REPOSITORY
from tests.vla_jax.policy.policies import loaded_policy, policy_config
from vla_jax.policy.artifact import save_policy


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


ACTING = """
import sys
import numpy as np
from vla_jax import InsertionPolicy
policy = InsertionPolicy.from_checkpoint(sys.argv[1])
policy.infer(policy.example())
ours = [module for name, module in sys.modules.items() if name.startswith(("vla_jax.", "feature_cache"))]
rooms = {".".join(module.__name__.split(".")[:2]) for module in ours}
print(*rooms, *(name for name in ("torch", "optax") if any(hasattr(module, name) for module in ours)))
"""


def test_acting_needs_neither_the_training_nor_the_readers(tmp_path):
    """Flax itself imports optax; of our modules that a robot loads, none does."""
    config = policy_config()
    artifact = loaded_policy(config)
    save_policy(tmp_path, artifact.network, artifact.normaliser, artifact.metadata)
    done = subprocess.run(
        [sys.executable, "-c", ACTING, str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert "vla_jax.policy" in loaded
    unwanted = {"training", "recordings", "dataset", "evaluation", "reporting", "reference"}
    assert not loaded & {"optax", "torch", "feature_cache", *(f"vla_jax.{room}" for room in unwanted)}


def test_the_feature_store_needs_numpy_only():
    loaded = modules_after("import feature_cache.store, feature_cache.keys")
    assert "numpy" in loaded
    assert not loaded & {"torch", "transformers", "jax", "flax"}


def test_names_are_found_and_others_are_not():
    import vla_jax

    assert vla_jax.UserError.__name__ == "UserError"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vla_jax.nonsense
