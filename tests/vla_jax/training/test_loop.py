"""Whole runs on a tiny data set: how they are fed, what they begin with, and how they fail."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from tests.vla_jax.evaluation.workspace import make_workspace
from vla_jax.dataset.batches import BatchLoader
from vla_jax.errors import UserError
from vla_jax.evaluation.open_loop import evaluate
from vla_jax.policy.artifact import load_policy
from vla_jax.policy.checkpoints import CHECKPOINTS, checkpoint_steps
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.training.checkpoint import saved_config
from vla_jax.training.loop import train
from vla_jax.training.recipes import make_config
from vla_jax.training.sharding import make_mesh


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("loop"))


def debug_config(workspace, head="regression", **changes):
    config = make_config("debug", workspace.features.spec, workspace.dataset.spec, head=head, fusion="concat")
    # Attention heads must divide the width of these features.
    fusion = dataclasses.replace(config.policy.fusion, vl_pool_width=16)
    return dataclasses.replace(config, policy=dataclasses.replace(config.policy, fusion=fusion), **changes)


def run(workspace, out, config, **options):
    lines = []
    result = train(
        config,
        workspace.dataset,
        workspace.features,
        out,
        mesh=make_mesh(1),
        announce=lines.append,
        **options,
    )
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return result, logged, lines


def parameters(policy):
    return nnx.state(policy.network, nnx.Param)


def without_times(logged):
    """The deterministic part of a run's log."""
    return [{name: value for name, value in line.items() if "time/" not in name} for line in logged]


def losses(logged):
    return [line["train/loss"] for line in logged if "train/loss" in line]


def assert_resumes_alike(workspace, out, config, logged, copy):
    """Resumes a copy of a finished run of 8 updates from before its last checkpoint: log and weights are the same."""
    shutil.copytree(out, copy)
    shutil.rmtree(copy / CHECKPOINTS / "8")
    _, resumed, _ = run(workspace, copy, config, resume=True)
    assert without_times(resumed) == without_times(logged)
    before, after = (jax.tree.leaves(parameters(load_policy(at))) for at in (out, copy))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def from_host(workspace, tmp_path_factory):
    return (out := tmp_path_factory.mktemp("host"), *run(workspace, out, debug_config(workspace)))


@pytest.mark.all_fusions
def test_feeding_from_the_devices_changes_nothing(workspace, from_host, tmp_path):
    _, result, logged, _ = from_host
    resident_result, resident_logged, lines = run(
        workspace, tmp_path / "run", debug_config(workspace), feed="device"
    )
    assert losses(resident_logged) == losses(logged)
    assert resident_result.metrics == result.metrics
    assert any("sensor stream and the features on the devices" in line for line in lines)


def test_a_run_says_what_it_is_about_to_do(workspace, from_host):
    _, _, _, lines = from_host
    said = "\n".join(lines)
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters(load_policy(from_host[0]))))
    assert f"{count:,} parameters" in said
    assert "1 cpu, mesh data 1 × fsdp 1" in said
    assert "update compiled in" in said
    assert "MB on each device" in said
    samples = len(workspace.dataset.sample_ticks("train"))
    assert f"{samples} training" in said
    assert f"episodes: {samples} training samples" in said


def test_a_run_resumed_between_two_log_lines_logs_what_an_undisturbed_one_does(workspace, tmp_path):
    config = debug_config(workspace, steps=12, checkpoint_every=2, log_every=3, validate_every=6)
    _, undisturbed, _ = run(workspace, tmp_path, config)
    assert [line["step"] for line in undisturbed if "train/loss" in line] == [3, 6, 9, 12]
    shutil.rmtree(tmp_path / CHECKPOINTS / "12")
    assert checkpoint_steps(tmp_path)[-1] == 10
    _, resumed, _ = run(workspace, tmp_path, config, resume=True)
    assert without_times(resumed) == without_times(undisturbed)


def test_averaged_and_live_weights_are_both_validated(from_host):
    _, result, _, _ = from_host
    assert {"validation/action_mse", "validation_live/action_mse"} <= result.metrics.keys()


def test_a_run_begins_with_another_s_weights(workspace, from_host, tmp_path):
    out, _, _, _ = from_host
    initial = load_policy(out)
    # So slow that the weights stay what they were.
    config = debug_config(workspace, init_from=str(initial.path), steps=1)
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, lr=1e-12, sensor_lr=1e-12, min_lr=0.0)
    )
    _, logged, _ = run(workspace, tmp_path / "run", config, initial=initial)
    again = load_policy(tmp_path / "run")
    for before, after in zip(
        jax.tree.leaves(parameters(initial)), jax.tree.leaves(parameters(again)), strict=True
    ):
        np.testing.assert_allclose(after, before, atol=1e-9)
    for before, after in zip(
        jax.tree.leaves(initial.normaliser), jax.tree.leaves(again.normaliser), strict=True
    ):
        np.testing.assert_array_equal(after, before)
    assert saved_config(again.path).init_from == str(initial.path)
    assert logged[0]["step"] == 1


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """No episode has a sensor."""
    return make_workspace(tmp_path_factory.mktemp("bare"), has_sensor=False)


@pytest.mark.parametrize("way", ["learned vector", "zeros", "no encoder"])
def test_data_without_any_sensor_train_and_are_judged(bare, tmp_path, way):
    """With an encoder, whose place the learned vector takes or, in the reference's way, what it makes of zeros."""
    workspace = bare
    assert workspace.dataset.spec.sensor is None
    config = debug_config(workspace)
    policy = replace_fusion(config.policy, strategy="none" if way == "no encoder" else "concat")
    if way == "zeros":
        sensor = dataclasses.replace(policy.sensor, masked_statistics=False)
        policy = dataclasses.replace(policy, no_sensor_embedding=False, sensor=sensor)
    result, logged, _ = run(workspace, tmp_path / "run", dataclasses.replace(config, policy=policy))
    assert np.isfinite(losses(logged)).all()
    judged = evaluate(
        InsertionPolicy.from_checkpoint(tmp_path / "run"),
        workspace.dataset,
        workspace.features,
        "val",
        batch_size=16,
    )
    assert judged.metrics["overall_mse"] == pytest.approx(result.metrics["validation/action_mse"], rel=1e-5)
    assert judged.metrics["data"]["episodes_with_sensor"] == 0


def replace_fusion(policy, **changes):
    return dataclasses.replace(policy, fusion=dataclasses.replace(policy.fusion, **changes))


def test_held_out_errors_are_those_of_evaluation(workspace, tmp_path):
    """A diffusion policy's noise included: both draw it from the seed and the tick."""
    result, _, _ = run(workspace, tmp_path, debug_config(workspace, "diffusion"))
    policy = InsertionPolicy.from_checkpoint(tmp_path)
    judged = evaluate(policy, workspace.dataset, workspace.features, "val", batch_size=5)
    assert judged.metrics["overall_mse"] == pytest.approx(result.metrics["validation/action_mse"], rel=1e-4)


def test_the_batch_that_breaks_a_run_is_saved(workspace, tmp_path):
    config = debug_config(workspace, steps=8, log_every=8)
    config = dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, lr=1e30, sensor_lr=1e30, schedule="constant"),
    )
    with pytest.raises(UserError, match=r"the loss became (nan|inf) at step \d.*non_finite"):
        run(workspace, tmp_path, config, feed="device")
    (file,) = (tmp_path / "non_finite").iterdir()
    step = int(file.stem.removeprefix("step_"))
    with np.load(file, allow_pickle=False) as saved:
        expected = BatchLoader(
            workspace.dataset, workspace.features, split="train", batch_size=8, seed=config.seed
        ).batch(step - 1)
        observed = {
            name: getattr(expected.observation, name)
            for name in ("vl", "vl_mask", "sensor", "has_sensor", "state", "feature_age", "previous_chunk")
        }
        others = {name: getattr(expected, name) for name in ("actions", "confidence", "tick", "valid")}
        assert set(saved) == {*observed, *others, "history_step", "history_loss"}
        for name, value in (observed | others).items():
            np.testing.assert_array_equal(saved[name], value, err_msg=name)
        history = dict(zip(saved["history_step"].tolist(), saved["history_loss"].tolist(), strict=True))
    assert not np.isfinite(history[step])
    assert all(np.isfinite(loss) for at, loss in history.items() if at < step)
    assert not (tmp_path / "checkpoints").exists() or not any((tmp_path / "checkpoints").iterdir())
