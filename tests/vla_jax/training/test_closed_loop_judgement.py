"""Roll-outs while training: what they see, what they decide, and that training does not change by them."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from tests.checkpoints import checkpoint_arrays, logged_lines
from tests.vla_jax.evaluation.workspace import make_workspace
from vla_jax.contracts.metric_names import BEST_METRIC, CLOSED_LOOP_ERROR, FAILURE_RATE, best_score
from vla_jax.errors import UserError
from vla_jax.policy.artifact import load_policy
from vla_jax.policy.checkpoints import CHECKPOINTS, checkpoint_steps, read_metadata, resolve_checkpoint
from vla_jax.training.beginning import begin
from vla_jax.training.closed_loop import ClosedLoop
from vla_jax.training.loop import train
from vla_jax.training.request import Request
from vla_jax.training.sharding import make_mesh

STEPS = 6


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("closed_loop"))


def trained(workspace, out, closed_loop=None):
    settings = {
        "steps": STEPS, "checkpoint_every": 3, "validate_every": 3, "policy.fusion.vl_pool_width": 16
    }  # fmt: skip
    begun = begin(Request(cache=workspace.cache, out=out, recipe="debug"), workspace.dataset, settings)
    return train(
        begun.config, workspace.dataset, begun.features, out, mesh=make_mesh(1), closed_loop=closed_loop
    )


def scripted(*rates, seen=None):
    """A judge that finds these failure rates one after another."""
    left = list(rates)

    def judge(artifact):
        if seen is not None:
            seen.append(artifact)
        return {"failure_rate": left.pop(0), "error": 0.1}

    return judge


@pytest.fixture(scope="module")
def judged(workspace, tmp_path_factory):
    """A run that is judged after updates 2, 4 and 6, the second time best; and what its judge was shown."""
    run, seen = tmp_path_factory.mktemp("runs") / "judged", []
    result = trained(workspace, run, ClosedLoop(scripted(0.5, 0.2, 0.3, seen=seen), every=2))
    return run, result, seen


def test_the_best_checkpoint_is_the_one_that_fails_least(judged):
    run, result, _ = judged
    assert result.step == STEPS
    assert resolve_checkpoint(run, "best").name == "4"
    # The best is kept beside the newest two.
    assert {4, 6} <= set(checkpoint_steps(run))
    assert read_metadata(run / CHECKPOINTS / "4").metrics[FAILURE_RATE] == 0.2
    logged = {line["step"]: line[FAILURE_RATE] for line in logged_lines(run) if FAILURE_RATE in line}
    assert logged == {2: 0.5, 4: 0.2, 6: 0.3}
    assert result.metrics[FAILURE_RATE] == 0.3
    assert BEST_METRIC in result.metrics


def test_the_judge_is_shown_the_weights_that_the_checkpoint_will_act_with(judged):
    run, _, seen = judged
    shown, saved = seen[-1], load_policy(run)
    assert shown.path.name == saved.path.name
    arrays = [jax.tree.leaves((nnx.state(policy.network), policy.normaliser)) for policy in (shown, saved)]
    for ours, theirs in zip(*arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_training_does_not_change_by_it(workspace, judged, tmp_path):
    trained(workspace, tmp_path / "alone")
    alone, beside = (checkpoint_arrays(run, STEPS) for run in (tmp_path / "alone", judged[0]))
    assert alone.keys() == beside.keys()
    for name, value in alone.items():
        np.testing.assert_array_equal(value, beside[name], err_msg=name)


def test_a_run_that_has_no_more_to_gain_ends(workspace, tmp_path):
    closed_loop = ClosedLoop(scripted(0.5, 0.5, 0.5), every=1, patience=2)
    result = trained(workspace, tmp_path / "run", closed_loop)
    assert result.step == 3
    assert not result.interrupted
    assert checkpoint_steps(tmp_path / "run")[-1] == 3


def test_roll_outs_decide_before_held_out_errors():
    failing, succeeding = ({FAILURE_RATE: rate, CLOSED_LOOP_ERROR: 1.0} for rate in (0.9, 0.1))
    held_out = {BEST_METRIC: 1e-9}
    precise = succeeding | {CLOSED_LOOP_ERROR: 0.5}
    others = [failing, {BEST_METRIC: 1.0}, precise, held_out, succeeding]
    assert sorted(others, key=best_score) == [precise, succeeding, failing, held_out, {BEST_METRIC: 1.0}]
    assert best_score({FAILURE_RATE: 0.1}) == (0.0, 0.1, math.inf)
    assert best_score({}) is None


@pytest.mark.parametrize("values", [{"every": 0}, {"every": 1, "patience": 0}])
def test_impossible_intervals_are_refused(values):
    with pytest.raises(UserError, match="at least 1"):
        ClosedLoop(scripted(), **values)
