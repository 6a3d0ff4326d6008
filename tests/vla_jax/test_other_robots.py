"""Fourteen joints, a horizon of 16, two cameras and no sensor: prepared, trained, evaluated and restored."""

import json

import jax
import numpy as np
import pytest

from tests.vla_jax.evaluation.workspace import PROVENANCE, export_features
from tests.vla_jax.recordings.test_registered_reader import CAMERAS, JOINTS, LogReader, options, write_log
from vla_jax import InsertionPolicy
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.preparation import prepare
from vla_jax.evaluation.open_loop import evaluate
from vla_jax.policy.artifact import load_policy
from vla_jax.recordings.registry import register_reader, unregister_reader
from vla_jax.reporting.evaluation_report import write_evaluation
from vla_jax.training.beginning import begin
from vla_jax.training.loop import train
from vla_jax.training.request import Request
from vla_jax.training.sharding import make_mesh


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("robots")
    register_reader(LogReader())
    for i in range(4):
        write_log(root / "source" / f"episode_{i}", i)
    dataset = prepare([str(root / "source")], root / "data", options()).dataset
    export_features(dataset, root / "cache", PROVENANCE)
    yield root, dataset
    unregister_reader("log")


@pytest.mark.parametrize(
    "head",
    [
        pytest.param("regression", marks=pytest.mark.slow),
        "diffusion",
        pytest.param("flow", marks=pytest.mark.slow),
    ],
)
def test_other_robots_data_go_all_the_way(data, head):
    root, dataset = data
    run = root / head
    begun = begin(Request(root / "cache", run, recipe="debug", model_type=head), dataset)
    assert begun.config.policy.fusion.strategy == "none"
    assert (begun.config.policy.horizon, begun.config.policy.action_dim) == (16, 14)
    result = train(begun.config, dataset, begun.features, run, mesh=make_mesh(1))
    assert result.step == begun.config.steps
    assert np.isfinite(result.metrics["validation/action_mse"])

    policy = InsertionPolicy.from_checkpoint(run)
    assert (policy.data, policy.features) == (dataset.spec, begun.features.spec)
    assert policy.data.actions.names == JOINTS
    assert policy.data.views == CAMERAS
    judged = evaluate(policy, dataset, begun.features, "val", batch_size=8)
    # The loop's last validation and the evaluation judge the same weights with the same noise.
    assert judged.metrics["overall_mse"] == pytest.approx(result.metrics["validation/action_mse"], rel=1e-4)
    assert judged.metrics["action_names"] == list(JOINTS)
    assert len(judged.metrics["mse_per_dim"]) == 14
    assert len(judged.metrics["mse_per_horizon"]) == 16
    report = write_evaluation(judged, dataset, root / f"{head}-report")
    assert "left_0" in report.read_text(encoding="utf-8")
    assert json.loads((report.parent / "metrics.json").read_text())["data"]["horizon"] == 16

    # A second process would see the same: restored again, it acts the same.
    table = FeatureTable.open(dataset, root / "cache")
    ticks = table.sample_ticks("val")[:3]
    vl, mask = table.gather(dataset.record_index(ticks))
    without = np.zeros(3, bool)
    key = jax.random.key(1)
    actions = policy.predict(vl, mask, None, without, key)
    assert actions.shape == (3, 16, 14)
    again = InsertionPolicy(load_policy(run)).predict(vl, mask, None, without, key)
    np.testing.assert_array_equal(actions, again)
