"""Training with the arm's last states: what is asked for, what is hidden, and what a run keeps."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.vla_jax.evaluation.workspace import make_workspace
from tests.vla_jax.training.test_beginning import beginning
from tests.vla_jax.training.test_loop import assert_resumes_alike, debug_config, run
from vla_jax.contracts.observation import Observation
from vla_jax.contracts.specs import StateWindow
from vla_jax.errors import UserError
from vla_jax.evaluation.open_loop import evaluate
from vla_jax.models.config import StateWindowConfig
from vla_jax.policy.artifact import load_policy
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.training.step import hide_state_windows

WINDOW = StateWindow(4, 2)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("state_window"))


def windowed(workspace, **changes):
    config = debug_config(workspace, **changes)
    reads = StateWindowConfig(tuple(range(6)), WINDOW, hidden_dim=8)
    return dataclasses.replace(config, policy=dataclasses.replace(config.policy, state_window=reads))


def test_a_run_begins_with_the_window_that_is_asked_for(workspace):
    assert beginning(workspace, recipe="debug").config.policy.state_window is None
    config = beginning(workspace, recipe="debug", state_window=4, state_window_every=2).config
    assert config.policy.state_window == StateWindowConfig(tuple(range(6)), WINDOW)
    assert config.policy.state is None
    assert beginning(workspace, recipe="debug", state_window=8).config.policy.last_states == StateWindow(8)


def test_what_goes_with_no_window_or_another_is_refused(workspace, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--state-window-every goes with --state-window N"):
        beginning(workspace, recipe="debug", state_window_every=2)
    run(workspace, tmp_path, debug_config(workspace, steps=1))
    with pytest.raises(
        UserError, match=r"--state-window 4 contradicts .* reads no window of the arm's state"
    ):
        beginning(workspace, init_from=tmp_path, recipe="debug", state_window=4)
    spec = dataclasses.replace(workspace.dataset.spec, state=())
    monkeypatch.setattr(workspace.dataset, "spec", spec)
    with pytest.raises(UserError, match="--state-window: the data hold actions only"):
        beginning(workspace, recipe="debug", state_window=4)


def test_windows_are_hidden_whole_as_often_as_configured(workspace):
    config = windowed(workspace, state_window_dropout=0.3)
    mask = np.ones((4000, 4), bool)
    mask[::2, 0] = False
    seen = Observation(None, None, state_window=np.zeros((4000, 4, 6)), state_window_mask=mask)
    kept = np.asarray(hide_state_windows(config, seen, jax.random.key(0)).state_window_mask)
    shown = kept[:, -1]
    # Four standard deviations of 4000 draws.
    assert abs((~shown).mean() - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5
    np.testing.assert_array_equal(kept[shown], mask[shown])
    assert not kept[~shown].any()
    assert hide_state_windows(config, Observation(None, None), jax.random.key(0)).state_window_mask is None


@pytest.fixture(scope="module")
def undisturbed(workspace, tmp_path_factory):
    config = windowed(workspace, steps=8, checkpoint_every=2, log_every=2, validate_every=8)
    return (out := tmp_path_factory.mktemp("undisturbed")), config, *run(workspace, out, config)


def test_a_run_resumes_exactly_and_is_judged_as_it_was_validated(workspace, undisturbed, tmp_path):
    out, config, result, logged, _ = undisturbed
    assert_resumes_alike(workspace, out, config, logged, tmp_path / "run")
    policy = InsertionPolicy.from_checkpoint(out)
    assert policy.state_window == WINDOW
    judged = evaluate(policy, workspace.dataset, workspace.features, "val", batch_size=16)
    assert judged.metrics["overall_mse"] == pytest.approx(result.metrics["validation/action_mse"], rel=1e-5)
    assert judged.metrics["policy"]["state_window"] == {"rows": 4, "every": 2}


def test_the_scale_of_motion_is_that_of_the_training_episodes(workspace, undisturbed):
    dataset = workspace.dataset
    states, there = dataset.state_windows(workspace.features.sample_ticks("train"), WINDOW)
    moved = (states.astype(np.float64) - states[:, -1:])[:, :-1][there[:, :-1]]
    scale = load_policy(undisturbed[0]).normaliser.motion_scale
    np.testing.assert_allclose(scale, np.sqrt(np.square(moved).mean(axis=0)), rtol=1e-5)
