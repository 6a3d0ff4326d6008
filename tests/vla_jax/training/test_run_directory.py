import pytest

from vla_jax.errors import UserError
from vla_jax.training.run_directory import locked


def test_two_trainings_never_share_a_run(tmp_path):
    with (
        locked(tmp_path / "run"),
        pytest.raises(UserError, match="another process"),
        locked(tmp_path / "run"),
    ):
        raise AssertionError("the second lock was granted")
    with locked(tmp_path / "run"):
        pass


def test_an_unwritable_place_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), locked(tmp_path / "file" / "run"):
        raise AssertionError("a run inside a file")
