import jax
import pytest

from tests.vla_jax.evaluation.workspace import make_workspace, save_run


@pytest.fixture(scope="package", autouse=True)
def quick_compilation():
    """These programs are small and run a few times: compiling them is what takes time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="package")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="package")
def regression_run(workspace):
    return save_run(workspace, workspace.root / "regression")
