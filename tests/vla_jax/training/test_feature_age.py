"""Training with features of an age that is drawn: what the option says, and what a run does with it."""

import dataclasses
import json

import numpy as np
import pytest

from tests.vla_jax.evaluation.workspace import make_workspace
from tests.vla_jax.training.test_beginning import beginning
from tests.vla_jax.training.test_loop import assert_resumes_alike, debug_config, losses, run
from vla_jax.errors import UserError
from vla_jax.models.config import AgeEncoderConfig
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.training.config import TrainConfig
from vla_jax.training.feature_age_option import NUM_QUANTILES, feature_age_quantiles


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("feature_age"))


def aged_config(workspace, ages, told=True, **changes):
    config = debug_config(workspace, feature_age=ages, **changes)
    return dataclasses.replace(
        config, policy=dataclasses.replace(config.policy, age=AgeEncoderConfig(8) if told else None)
    )


def test_numbers_are_ages():
    assert feature_age_quantiles(()) == ()
    assert feature_age_quantiles(("0.8",)) == (0.8,)
    assert feature_age_quantiles(("0", "1.5")) == (0.0, 1.5)


@pytest.mark.parametrize(
    "words", [("-1",), ("4",), ("1.5", "0.5"), ("1", "2", "3"), ("0.5", "log"), ("nan",)]
)
def test_others_are_refused(words):
    with pytest.raises(UserError, match=f"--feature-age {' '.join(words)}: give one age"):
        feature_age_quantiles(words)


def test_a_log_s_ages_are_those_at_which_the_policy_acted(tmp_path):
    def tick(age_ms, mode="run"):
        return json.dumps({"kind": "tick", "mode": mode, "age_ms": {"state": 5.0, "features": age_ms}})

    lines = [json.dumps({"kind": "event", "event": "start"}), tick(9000.0, "hold"), tick(None)]
    lines += ["[1]", '{"kind": "tick"']
    lines += [tick(1000.0 * age) for age in np.linspace(0.4, 1.2, 401)] + [tick(5000.0)]
    (tmp_path / "ticks.jsonl").write_text("\n".join(lines))
    found = feature_age_quantiles((str(tmp_path),))
    assert found == feature_age_quantiles((str(tmp_path / "ticks.jsonl"),))
    assert len(found) == NUM_QUANTILES
    np.testing.assert_allclose(found[:-1], np.linspace(0.4, 1.2, NUM_QUANTILES)[:-1], atol=0.005)
    assert found[-1] == 3.0  # Older than what policies are trained for.
    TrainConfig(policy=None, feature_age=found)


def test_a_log_without_ages_and_no_log_are_refused(tmp_path):
    with pytest.raises(UserError, match="is no age in seconds, and there is no log"):
        feature_age_quantiles((str(tmp_path),))
    (tmp_path / "ticks.jsonl").write_text("{}")
    with pytest.raises(UserError, match="holds no tick that acted on features"):
        feature_age_quantiles((str(tmp_path),))


def test_ages_that_make_no_sense_are_refused_in_a_configuration(workspace):
    for ages in ((1.0, 0.5), (-0.1,), (3.5,), (float("nan"),)):
        with pytest.raises(
            UserError, match=r"TrainConfig.feature_age must be ascending numbers from 0 to 3 seconds"
        ):
            debug_config(workspace, feature_age=ages)


def test_a_run_begins_with_ages_and_a_network_that_is_told(workspace, tmp_path):
    plain = beginning(workspace, recipe="debug").config
    assert (plain.feature_age, plain.policy.age) == ((), None)
    begun = beginning(workspace, recipe="debug", feature_age=("0.2", "1.5"))
    assert (begun.config.feature_age, begun.config.policy.age) == ((0.2, 1.5), AgeEncoderConfig())
    assert begun.notes == ()
    # A network that is fixed is not told, and it is said.
    out = tmp_path / "run"
    run(workspace, out, debug_config(workspace))
    from_weights = beginning(workspace, init_from=out, recipe="debug", feature_age=("0.8",))
    assert (from_weights.config.feature_age, from_weights.config.policy.age) == ((0.8,), None)
    (note,) = from_weights.notes
    assert note == "the network that is kept is not told how old features are"
    with pytest.raises(UserError, match="with its own configuration"):
        beginning(workspace, out=out, resume=True, feature_age=("0.8",))


def test_pictures_without_an_age_are_refused(workspace, monkeypatch):
    spec = dataclasses.replace(workspace.dataset.spec, alignment="index")
    monkeypatch.setattr(workspace.dataset, "spec", spec)
    with pytest.raises(UserError, match="pairs pictures by index, so that features have no age"):
        beginning(workspace, recipe="debug", feature_age=("0.8",))


@pytest.fixture(scope="module")
def undisturbed(workspace, tmp_path_factory):
    config = aged_config(workspace, (0.0, 1.2), steps=8, checkpoint_every=2, log_every=2, validate_every=8)
    return (out := tmp_path_factory.mktemp("undisturbed")), config, *run(workspace, out, config)


def test_a_resumed_run_draws_the_same_ages(workspace, undisturbed, tmp_path):
    out, config, _, logged, _ = undisturbed
    assert_resumes_alike(workspace, out, config, logged, tmp_path / "run")


def test_features_on_the_devices_are_of_the_same_ages(workspace, undisturbed, tmp_path):
    _, config, result, logged, _ = undisturbed
    resident, resident_logged, _ = run(workspace, tmp_path, config, feed="device")
    assert losses(resident_logged) == losses(logged)
    assert resident.metrics == result.metrics


def test_ages_and_being_told_them_change_what_is_learnt_and_are_announced(workspace, undisturbed, tmp_path):
    lines = undisturbed[-1]
    assert "features are 0 to 1.2 s old" in lines
    untold = aged_config(workspace, (0.8, 0.8), told=False, steps=2)
    _, of_untold, lines = run(workspace, tmp_path / "untold", untold)
    assert "features are 0.8 s old, which the policy is not told" in lines
    newest = dataclasses.replace(untold, feature_age=())
    _, of_newest, lines = run(workspace, tmp_path / "newest", newest)
    assert not any("s old" in line for line in lines)
    assert losses(of_newest) != losses(of_untold)
    policy = InsertionPolicy.from_checkpoint(undisturbed[0])
    assert policy.config.age == AgeEncoderConfig(8)
    policy.infer(policy.example(1))
