"""The train_residual command, on checkpoints with random weights."""

import hashlib

import numpy as np
import pytest

from experiments.acting import Acting
from tests.calls import call_here
from tests.commands import error_line
from tests.vla_jax.evaluation.workspace import make_workspace, policy_config, save_run, save_training
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.policy.residual import read_residual_metadata
from vla_jax.training.config import TrainConfig


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("residual"))


def call(workspace, run, *options):
    sizes = ("--steps", 3, "--batch-size", 8, "--hidden-dim", 4)
    return call_here("train_residual", run, workspace.data, "--cache", workspace.cache, *sizes, *options)


def contents(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def corrected(run):
    policy = InsertionPolicy.from_checkpoint(run)
    residual = Acting(residual=True).residual_of(policy)
    window = 50.0 * np.random.default_rng(0).normal(size=(1, 65, 1026)).astype(np.float32)
    return residual.correct(np.zeros((1, 7), np.float32), np.array([2.0]), window, np.ones(1, bool))


def test_a_run_gets_a_residual_that_acts_beside_its_policy(workspace):
    run = save_training(
        workspace,
        workspace.root / "trained",
        TrainConfig(policy=policy_config(workspace), sensor_noise=0.1, feature_age=(0.2, 0.6)),
    )
    checkpoint = contents(run / "checkpoints")
    done = call(workspace, run)
    assert done.returncode == 0, done.stderr
    assert "held-out action_mse by the age of the chunk" in done.stdout
    metadata = read_residual_metadata(run / "residual")
    assert [error.chunk_age for error in metadata.held_out] == list(range(8))
    assert all(error.corrected != error.policy for error in metadata.held_out)
    assert metadata.training["config"]["steps"] == 3
    assert metadata.training["data"]["samples"] == workspace.dataset.describe()["samples"]
    # The policy stays as it is, and nothing else is left in its run.
    assert contents(run / "checkpoints") == checkpoint
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "residual"]
    first = corrected(run)
    assert np.abs(first).max() > 0
    # Again with equal seeds: the same; with another, another.
    assert call(workspace, run).returncode == 0
    np.testing.assert_array_equal(corrected(run), first)
    assert call(workspace, run, "--seed", 1).returncode == 0
    assert (corrected(run) != first).any()


def test_imported_policies_have_one_too_and_only_ages_that_are_asked_for(workspace):
    run = save_run(workspace, workspace.root / "imported")
    done = call(workspace, run, "--chunk-age-max", 1)
    assert done.returncode == 0, done.stderr
    assert [error.chunk_age for error in read_residual_metadata(run / "residual").held_out] == [0, 1]
    assert np.isfinite(corrected(run)).all()


def test_a_policy_that_reads_no_sensor_has_none(workspace):
    run = save_run(workspace, workspace.root / "blind", policy_config(workspace, fusion="none"))
    assert "reads no sensor" in error_line(call(workspace, run))
    assert not (run / "residual").exists()
