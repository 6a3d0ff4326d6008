"""The whole loop on a tiny data set, in this process."""

import json
import shutil
from dataclasses import replace

import pytest

from tests.vla_jax.evaluation.workspace import make_workspace
from vla_jax.training.checkpoint import CHECKPOINTS, checkpoint_steps
from vla_jax.training.config import TrainConfig
from vla_jax.training.loop import train
from vla_jax.training.recipes import make_config
from vla_jax.training.sharding import make_mesh


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def config(workspace, **changes) -> TrainConfig:
    made = make_config(
        "debug",
        model_type="regression",
        fusion_strategy="concat",
        vl_dim=workspace.features.width,
        vl_slots=workspace.features.num_slots,
        sensor_window_size=workspace.dataset.meta.sensor_window_size,
    )
    return replace(made, **changes)


def logged(run):
    """The deterministic part of a run's log: every line without its times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


def test_a_run_resumed_between_two_log_lines_logs_what_an_undisturbed_one_does(workspace, tmp_path):
    made = config(workspace, steps=12, checkpoint_every=2, log_every=3, validate_every=6)
    run, mesh = tmp_path / "run", make_mesh(1)
    train(made, workspace.dataset, workspace.features, run, mesh=mesh)
    undisturbed = logged(run)
    assert [line["step"] for line in undisturbed if "train/loss" in line] == [3, 6, 9, 12]
    shutil.rmtree(run / CHECKPOINTS / "12")
    assert checkpoint_steps(run)[-1] == 10
    train(made, workspace.dataset, workspace.features, run, mesh=mesh, resume=True)
    assert logged(run) == undisturbed
