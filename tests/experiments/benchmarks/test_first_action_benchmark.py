"""The benchmark of the first action at a size that tries it out; its figures are not looked at."""

import json

import pytest

from experiments.benchmarks import first_action
from experiments.benchmarks.first_action import Arguments
from vla_jax.errors import UserError


@pytest.mark.slow
def test_checkpoint_and_bundle_act_in_processes_of_their_own(tmp_path, capsys):
    first_action.main(Arguments(size="small", heads=("regression",), rounds=1, out=tmp_path / "figures.json"))
    results = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert [result["side"] for result in results] == [
        f"{what}, compiled {when}" for what in ("checkpoint", "bundle") for when in ("anew", "before")
    ]
    assert all(result["processor_s"] > 0 for result in results)
    assert "processor s" in capsys.readouterr().out


def test_a_process_that_does_not_act_is_a_fault(tmp_path):
    with pytest.raises(RuntimeError, match="ended with status 3"):
        first_action.run_process("raise SystemExit(3)", tmp_path, None)
    with pytest.raises(UserError, match="--rounds is"):
        first_action.main(Arguments(size="small", rounds=0))
