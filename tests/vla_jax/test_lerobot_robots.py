"""LeRobot data sets go all the way: fourteen joints and two cameras without sensor, and an arm with a small sensor."""

import json

import numpy as np
import pytest

from tests.vla_jax.evaluation.workspace import PROVENANCE, export_features
from tests.vla_jax.recordings.lerobot_sets import JOINTS, write_set
from vla_jax import InsertionPolicy
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.preparation import prepare
from vla_jax.evaluation.open_loop import evaluate
from vla_jax.recordings.lerobot.meaning import LeRobotOptions
from vla_jax.reporting.evaluation_report import write_evaluation
from vla_jax.training.beginning import begin
from vla_jax.training.loop import train
from vla_jax.training.request import Request
from vla_jax.training.sharding import make_mesh


def judged(root, options):
    """Trains and judges on the set in `root / "set"`; returns the data set, the metrics and the page."""
    dataset = prepare([str(root / "set")], root / "data", options).dataset
    export_features(dataset, root / "cache", PROVENANCE)
    begun = begin(Request(root / "cache", root / "run", recipe="debug"), dataset)
    train(begun.config, dataset, begun.features, root / "run", mesh=make_mesh(1))
    policy = InsertionPolicy.from_checkpoint(root / "run")
    evaluation = evaluate(policy, dataset, begun.features, "val", batch_size=8)
    report = write_evaluation(evaluation, dataset, root / "report")
    return dataset, json.loads((root / "report/metrics.json").read_text()), report.read_text(encoding="utf-8")


def test_fourteen_joints_and_two_cameras(tmp_path):
    rng, total = np.random.default_rng(0), 60
    actions = rng.normal(size=(total, 14)).astype(np.float32)
    # A gripper that is open or closed, and one that never moves.
    actions[:, 6], actions[:, 13] = rng.random(total) < 0.1, 0.5
    write_set(tmp_path / "set", lengths=(15,) * 4, numbers={"observation.state": actions, "action": actions})
    _, metrics, page = judged(tmp_path, PrepareOptions(horizon=16, val_fraction=0.4))
    assert metrics["action_names"] == list(JOINTS)
    assert len(metrics["mse_per_horizon"]) == 16
    assert metrics["correlations"][13] is None
    assert metrics["translation_mse"] is metrics["drift"]["final_mm"] is None
    assert (
        "in the data&#x27;s own units per control tick" in page
        or "in the data's own units per control tick" in page
    )
    for absent in ("final drift</", "Open-loop drift", "mm and degrees per"):
        assert absent not in page
    assert "left_0.pos" in page
    policy = InsertionPolicy.from_checkpoint(tmp_path / "run")
    chunk = policy.infer(policy.example(2))
    # What never moves is predicted as it always is.
    np.testing.assert_allclose(chunk[..., 13], 0.5)
    assert (policy.data.actions.rate_hz, policy.data.views) == (20.0, ("top", "wrist"))


@pytest.mark.slow
def test_an_arm_with_a_sensor_and_units(tmp_path):
    rng, total = np.random.default_rng(0), 40
    numbers = {
        "action": rng.normal(size=(total, 3)).astype(np.float32),
        "observation.sensor": rng.normal(size=(total, 20, 33)).astype(np.float32),
    }
    write_set(tmp_path / "set", lengths=(10,) * 4, numbers=numbers)
    own = LeRobotOptions(action_units=("mm", "mm", "none"))
    options = PrepareOptions(
        EpisodeOptions(readers={"lerobot": own}), val_fraction=0.4, sensor_window_size=20
    )
    dataset, metrics, page = judged(tmp_path, options)
    assert (dataset.spec.sensor.channels, dataset.spec.sensor.window, dataset.spec.sensor.hz) == (
        33,
        20,
        400.0,
    )
    assert metrics["translation_mse"] > 0
    assert metrics["rotation_mse"] is None
    assert "in mm per control tick" in page
    assert "Open-loop drift" in page
