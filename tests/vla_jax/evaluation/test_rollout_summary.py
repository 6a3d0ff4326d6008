"""What is said of closed-loop episodes, checked by hand."""

import json

import numpy as np
import pytest

from tests.vla_jax.evaluation.rollouts import ACTIONS, lower, rollout
from vla_jax.contracts.specs import ActionSpec
from vla_jax.evaluation.intervals import mcnemar_exact, wilson_interval
from vla_jax.evaluation.rollout_summary import (
    Trial,
    chunk_jump,
    compare,
    comparisons,
    rollout_json,
    summarise,
)


def test_a_summary_counts_and_measures():
    episodes = [
        rollout(0, depth_error_um=10.0, stopped=True),
        rollout(1, depth_error_um=30.0, stopped=True),
        rollout(2, depth_error_um=50.0, stopped=True),
        rollout(3, False, "too_deep", depth_error_um=800.0, stopped=False),
        rollout(4, False, "never_entered", depth_error_um=None, stopped=False),
        rollout(5, False, "too_deep", depth_error_um=None, stopped=True),
    ]
    summary = summarise(Trial("regression", episodes, {"step": 7}), ACTIONS)
    assert summary["name"] == "regression"
    assert summary["checkpoint"] == {"step": 7}
    assert summary["episodes"] == 6
    low, high = wilson_interval(3, 6)
    assert summary["success"] == {"rate": 0.5, "low": low, "high": high}
    assert summary["failures"] == {"never_entered": 1, "too_deep": 2}
    assert summary["stopped"] == 4
    assert summary["depth_error_um"] == {
        "median": 40.0,
        "p95": pytest.approx(50 + 0.85 * 750),
        "max": 800.0,
        "episodes": 4,
    }
    assert summary["time_s"]["median"] == pytest.approx(0.4)


def test_what_is_nowhere_defined_is_null():
    episodes = [rollout(0, False, "lost", error_mm=None)]
    summary = summarise(Trial("a", episodes), ActionSpec(("grip",), ("",), 3, 10.0))
    assert summary["error_mm"] == {"median": None, "p95": None, "max": None, "episodes": 0}
    assert summary["chunk_jump"]["median"] is None
    json.dumps(summary, allow_nan=False)


def test_the_environment_s_own_time_is_taken():
    assert summarise(Trial("a", [rollout(0, time_s=12.5)]), ACTIONS)["time_s"]["max"] == 12.5


def test_no_episodes_are_no_summary():
    with pytest.raises(ValueError, match="vision"):
        summarise(Trial("vision", []), ACTIONS)


def test_a_chunk_s_jump_is_from_what_the_one_before_had_for_the_same_tick():
    chunks = np.zeros((3, 3, 4))
    chunks[0, 2] = [3.0, 4.0, 0.0, 9.0]  # for tick 2; the gripper is not in mm
    chunks[1, 0] = [0.0, 0.0, 0.0, 0.0]
    chunks[1, 1] = [0.0, 0.0, 1.0, 0.0]  # for tick 3
    chunks[2, 0] = [0.0, 0.0, 2.0, 0.0]
    episode = rollout(0, chunks=chunks, at=[0, 2, 3])
    assert chunk_jump(episode, ACTIONS) == pytest.approx((5.0 + 1.0) / 2)
    # A chunk that was used up says nothing of the next one's tick.
    assert chunk_jump(rollout(0, chunks=chunks, at=[0, 3, 4]), ACTIONS) == pytest.approx(1.0)
    assert chunk_jump(rollout(0, chunks=chunks, at=[0, 3, 6]), ACTIONS) is None


def test_a_late_chunk_s_jump_is_where_it_can_be_executed():
    chunks = np.zeros((2, 3, 4))
    chunks[0, 1] = [9.0, 9.0, 9.0, 9.0]  # for tick 1, at which the second chunk is not there yet
    chunks[0, 2] = [3.0, 4.0, 0.0, 9.0]  # for tick 2
    assert chunk_jump(rollout(0, chunks=chunks, at=[0, 1], action_latency=1), ACTIONS) == pytest.approx(5.0)
    assert chunk_jump(rollout(0, chunks=chunks, at=[0, 1], action_latency=2), ACTIONS) is None


def test_a_steady_policy_does_not_jump():
    assert chunk_jump(lower(0), ACTIONS) == 0.0


def pair():
    """Six pairs: two passed by both, three by a alone, one by b alone; and a seed that only one has."""
    a = [rollout(seed, seed != 5, depth_error_um=10.0 * seed, stopped=True) for seed in (5, 0, 1, 2, 3, 4)]
    b = [rollout(seed, seed in (0, 1, 5), depth_error_um=10.0 * seed + 7, stopped=True) for seed in range(6)]
    return Trial("a", [*a, rollout(77, False, "x")]), Trial("b", b)


def test_pairs_are_of_equal_seeds():
    a, b = pair()
    result = compare(a, b, seed=0)
    assert (result["episodes"], result["both"], result["only_a"], result["only_b"], result["neither"]) == (
        6,
        2,
        3,
        1,
        0,
    )
    assert result["mcnemar_p"] == mcnemar_exact(np.array([1, 1, 1, 0], bool), np.array([0, 0, 0, 1], bool))
    success = result["differences"]["success"]
    assert success["value"] == pytest.approx(2 / 6)
    assert success["low"] < 0 < success["high"]
    # Each pair differs by 7, whatever the pairs that are drawn, though not their medians.
    error = result["differences"]["depth_error_um"]
    assert error["value"] == pytest.approx(-7)
    assert (error["low"], error["high"], error["episodes"]) == (pytest.approx(-7), pytest.approx(-7), 6)
    assert "stopped" not in result["differences"]
    assert compare(a, b, seed=0) == result


def test_a_measure_is_compared_where_both_are_defined():
    a = Trial("a", [rollout(0, error=1.0), rollout(1, error=None), rollout(2, error=5.0)])
    b = Trial("b", [rollout(0, error=2.0), rollout(1, error=2.0), rollout(2, error=None)])
    assert compare(a, b, seed=0)["differences"]["error"]["episodes"] == 1
    assert compare(a, b, seed=0)["differences"]["error"]["value"] == -1.0


def test_policies_are_compared_under_one_setting_and_settings_with_the_first():
    a, b = pair()
    late = [Trial(trial.name, trial.rollouts, feature_latency_s=0.4) for trial in (a, b)]
    noisy = Trial("a", a.rollouts, shift="speckle")
    named = [
        (entry["a"]["name"], entry["a"]["setting"], entry["b"]["name"], entry["b"]["setting"])
        for entry in comparisons([a, b, *late, noisy], seed=0)
    ]
    nominal, delayed = "no delay, no shift", "features 0.4 s late"
    assert named == [
        ("a", nominal, "b", nominal),
        ("a", nominal, "a", delayed),
        ("a", nominal, "a", "speckle"),
        ("b", nominal, "b", delayed),
        ("a", delayed, "b", delayed),
    ]


def test_trials_without_common_seeds_are_not_compared():
    assert comparisons([Trial("a", [rollout(0)]), Trial("b", [rollout(1)])], seed=0) == []


def test_a_setting_names_delay_and_shift():
    assert Trial("a", [], {}, 0.8, "dark").setting == "features 0.8 s late, dark"


def test_the_json_is_the_three_parts():
    a, b = pair()
    content = rollout_json([a, b], ACTIONS, {"episodes": 6})
    assert list(content) == ["runs", "comparisons", "settings"]
    assert [run["name"] for run in content["runs"]] == ["a", "b"]
    assert len(content["comparisons"]) == 1
    assert content["settings"] == {"episodes": 6}
    json.dumps(content, allow_nan=False)
