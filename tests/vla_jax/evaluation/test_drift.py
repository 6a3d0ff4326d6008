import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_jax.contracts.specs import LAB_ACTIONS, ActionSpec
from vla_jax.evaluation.drift import (
    drift_per_episode,
    executed_actions,
    integrated_drift,
    summarise_drift,
    wrap_degrees,
)


def recorded_chunks(recorded, horizon=8):
    """True chunks of the next `horizon` actions, the tail padded with the last one."""
    index = np.minimum(np.arange(len(recorded))[:, None] + np.arange(horizon), len(recorded) - 1)
    return recorded[index]


def test_chunks_are_executed_whole_one_after_another():
    predicted = np.zeros((20, 8, 1))
    predicted[..., 0] = 100 * np.arange(20)[:, None] + np.arange(8)
    executed = executed_actions(predicted)[:, 0]
    np.testing.assert_array_equal(executed[:8], np.arange(8))
    np.testing.assert_array_equal(executed[8:16], 800 + np.arange(8))
    np.testing.assert_array_equal(executed[16:], 1600 + np.arange(4))


def test_true_chunks_do_not_drift():
    recorded = np.random.default_rng(0).normal(size=(21, 7))
    position, angle = integrated_drift(recorded_chunks(recorded), recorded, LAB_ACTIONS)
    np.testing.assert_allclose(position, 0, atol=1e-12)
    np.testing.assert_allclose(angle, 0, atol=1e-12)


def test_constant_error_accumulates():
    recorded = np.zeros((10, 7))
    predicted = np.zeros((10, 8, 7))
    predicted[..., 0], predicted[..., 1], predicted[..., 5] = 0.3, 0.4, 2.0
    predicted[..., 6] = 50.0  # the gripper moves nothing
    position, angle = integrated_drift(predicted, recorded, LAB_ACTIONS)
    np.testing.assert_allclose(position, 0.5 * np.arange(1, 11))
    np.testing.assert_allclose(angle, 2.0 * np.arange(1, 11))


def test_a_full_turn_is_no_angle_drift():
    predicted = np.zeros((8, 8, 7))
    predicted[0, :, 3] = 45.0
    _, angle = integrated_drift(predicted, np.zeros((8, 7)), LAB_ACTIONS)
    np.testing.assert_allclose(angle, [45, 90, 135, 180, 135, 90, 45, 0], atol=1e-12)


@given(st.floats(-1e4, 1e4))
def test_wrap(angle):
    wrapped = wrap_degrees(np.array(angle))
    assert -180 < wrapped <= 180
    assert np.cos(np.radians(wrapped)) == pytest.approx(np.cos(np.radians(angle)), abs=1e-6)


def test_wrap_border():
    np.testing.assert_array_equal(wrap_degrees(np.array([180.0, -180.0, 540.0, 0.0])), [180, 180, 180, 0])


def test_episodes_and_gaps_start_anew():
    tick = np.array([0, 1, 2, 5, 6, 7, 8])
    episode = np.array([0, 0, 0, 0, 0, 1, 1])
    predicted = np.zeros((7, 8, 7))
    predicted[..., 0] = 1.0
    drifts = drift_per_episode(predicted, np.zeros((7, 7)), tick, episode, LAB_ACTIONS)
    assert [(drift.episode, drift.ticks) for drift in drifts] == [(0, 3), (0, 2), (1, 2)]
    np.testing.assert_allclose(drifts[1].position, [1, 2])


def test_summary():
    predicted = np.zeros((5, 8, 7))
    predicted[:3, :, 0] = 1.0
    predicted[3:, :, 4] = -2.0
    drifts = drift_per_episode(
        predicted, np.zeros((5, 7)), np.arange(5), np.array([0, 0, 0, 1, 1]), LAB_ACTIONS
    )
    summary = summarise_drift(drifts)
    assert summary["final_mm"] == pytest.approx((3 + 0) / 2)
    assert summary["mean_mm"] == pytest.approx((2 + 0) / 2)
    assert summary["worst_mm"] == pytest.approx(3)
    assert summary["final_deg"] == pytest.approx((0 + 4) / 2)
    assert summary["mean_deg"] == pytest.approx((0 + 3) / 2)
    assert summary["worst_deg"] == pytest.approx(4)
    assert [entry["ticks"] for entry in summary["episodes"]] == [3, 2]


def test_a_unit_that_no_action_has_has_no_drift():
    joints = ActionSpec(("j1", "grip"), ("deg", ""), horizon=8, rate_hz=10.0)
    predicted = np.ones((5, 8, 2))
    drifts = drift_per_episode(predicted, np.zeros((5, 2)), np.arange(5), np.zeros(5, int), joints)
    assert drifts[0].position is None
    np.testing.assert_allclose(drifts[0].angle, np.arange(1, 6))
    summary = summarise_drift(drifts)
    assert (summary["final_mm"], summary["worst_mm"], summary["final_deg"]) == (None, None, 5.0)
    assert summary["episodes"][0]["mean_mm"] is None


def test_no_samples():
    empty = drift_per_episode(
        np.zeros((0, 8, 7)), np.zeros((0, 7)), np.zeros(0, int), np.zeros(0, int), LAB_ACTIONS
    )
    assert summarise_drift(empty) == {
        "final_mm": None, "mean_mm": None, "worst_mm": None,
        "final_deg": None, "mean_deg": None, "worst_deg": None, "episodes": [],
    }  # fmt: skip
