import pytest

from tests.vla_jax.evaluation.workspace import make_workspace, save_run


@pytest.fixture(scope="package")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="package")
def regression_run(workspace):
    return save_run(workspace, workspace.root / "regression")
