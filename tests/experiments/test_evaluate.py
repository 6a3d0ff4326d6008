"""The evaluate command; its checkpoints hold random weights, its features are random."""

import json
import os
import subprocess
import sys

import pytest

from experiments import evaluate
from tests.vla_jax.evaluation.workspace import make_workspace, policy_config, save_run
from vla_jax.errors import UserError
from vla_jax.policy.checkpoints import CHECKPOINTS


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def run(workspace):
    return save_run(workspace, workspace.root / "run", policy_config(workspace, fusion="none"))


def arguments(workspace, run, out, **options):
    return evaluate.Arguments(run=run, data=workspace.data, cache=workspace.cache, out=out, **options)


def test_a_checkpoint_is_judged_from_its_directory_alone(workspace, run, tmp_path, capsys):
    evaluate.main(arguments(workspace, run / CHECKPOINTS / "0", tmp_path / "report", split="all"))
    shown = capsys.readouterr().out
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    for name in ("policy", "zero", "mean", "previous", "align", "near_target", "report.html"):
        assert name in shown
    for name in ("overall_mse", "overall_mae", "first_action_mse", "full_horizon_mse"):
        assert metrics[name] > 0
    for name in ("mse_per_dim", "mae_per_dim", "correlations", "action_names"):
        assert len(metrics[name]) == 7
    for baseline in ("zero", "mean", "previous"):
        assert metrics["baselines"][baseline]["overall_mse"] > 0
        assert metrics["baselines"][baseline]["overall_mae"] > 0
    assert metrics["latency"]["p50_ms"] <= metrics["latency"]["p99_ms"]
    assert metrics["policy"]["step"] == 0
    assert metrics["data"]["samples"] == len(workspace.dataset.sample_ticks("all"))
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<svg") == 5
    assert len(list((tmp_path / "report" / "figures").glob("*.svg"))) == 5
    assert len(list((tmp_path / "report" / "figures").glob("*.pdf"))) == 5
    low, high = metrics["intervals"]["position_rmse"]
    assert 0 < low <= (3 * metrics["translation_mse"]) ** 0.5 <= high
    assert "http" not in page


PROGRAM = """
import sys
from pathlib import Path
from experiments import evaluate
root, run, out = map(Path, sys.argv[1:])
evaluate.main(evaluate.Arguments(run=run, data=root / "data", cache=root / "cache", out=out, sampler="ddpm", steps=3))
foreign = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "tensorflow"})
assert not foreign, foreign
"""


def test_a_diffusion_policy_is_judged_without_torch(workspace, tmp_path):
    run = save_run(workspace, tmp_path / "run", policy_config(workspace, "diffusion", "none"))
    subprocess.run(
        [sys.executable, "-c", PROGRAM, workspace.root, run, tmp_path / "report"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        check=True,
        timeout=300,
    )
    policy = json.loads((tmp_path / "report" / "metrics.json").read_text())["policy"]
    assert (policy["sampler"], policy["sampling_steps"]) == ("ddpm", 3)


def test_mistakes_give_one_line_and_status_2(workspace, run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    words = {"run": run, "data": workspace.data, "--cache": workspace.cache, "--out": tmp_path / "out"}
    mistakes = [
        ({"run": tmp_path / "nowhere"}, "nowhere"),
        ({"run": tmp_path / "empty"}, "no checkpoint"),
        ({"data": tmp_path / "nowhere"}, "nowhere"),
        ({"data": tmp_path / "empty"}, "no packed data set"),
        ({"--cache": tmp_path / "nowhere"}, "nowhere"),
        ({"--cache": tmp_path / "empty"}, "no features"),
        ({"--batch-size": 0}, "--batch-size"),
        ({"--steps": 4}, "--steps"),
    ]
    for changes, message in mistakes:
        given = {**words, **changes}
        argv = [given.pop("run"), given.pop("data"), *(word for pair in given.items() for word in pair)]
        with pytest.raises(SystemExit) as ended:
            evaluate.COMMAND.run([*map(str, argv)])
        lines = capsys.readouterr().err.strip().splitlines()
        assert ended.value.code == 2, (changes, lines)
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert message in lines[0], (changes, lines)
    assert not (tmp_path / "out").exists()


def test_an_unwritable_place_is_a_users_mistake(workspace, run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the report"):
        evaluate.main(arguments(workspace, run, tmp_path / "file"))
