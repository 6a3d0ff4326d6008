import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_jax.contracts.specs import LAB_ACTIONS, ActionSpec
from vla_jax.evaluation.metrics import (
    action_metrics,
    correlations,
    metrics_of_subsets,
    r2_per_dim,
)

CHUNKS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(1, 4), st.just(7)),
    elements=st.floats(-5, 5, allow_subnormal=False),
)


def chunks(seed=0, samples=30, horizon=8):
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(samples, horizon, 7)).astype(np.float32)
    return (target + rng.normal(size=target.shape) * np.arange(1, 8)).astype(np.float32), target


def test_numbers_computed_by_hand():
    target = np.zeros((2, 2, 7), np.float32)
    target[..., 6] = 1
    predicted = target.copy()
    predicted[0, 0, 0] = 3.0  # first action of sample 0: dx off by 3 mm
    predicted[1, 1, 4] = -4.0  # second action of sample 1: db off by 4 degrees
    metrics = action_metrics(predicted, target, LAB_ACTIONS)
    assert metrics["samples"] == 2
    assert metrics["overall_mse"] == metrics["full_horizon_mse"] == pytest.approx(25 / 28)
    assert metrics["overall_mae"] == pytest.approx(7 / 28)
    assert metrics["motion_mse"] == pytest.approx(25 / 24)
    assert metrics["motion_mae"] == pytest.approx(7 / 24)
    assert metrics["first_action_mse"] == pytest.approx(9 / 14)
    assert metrics["first_motion_mse"] == pytest.approx(9 / 12)
    assert metrics["translation_mse"] == pytest.approx(9 / 12)
    assert metrics["rotation_mse"] == pytest.approx(16 / 12)
    assert metrics["mse_per_dim"] == pytest.approx([9 / 4, 0, 0, 0, 16 / 4, 0, 0])
    assert metrics["mae_per_dim"] == pytest.approx([3 / 4, 0, 0, 0, 4 / 4, 0, 0])
    assert metrics["first_mse_per_dim"] == pytest.approx([9 / 2, 0, 0, 0, 0, 0, 0])
    assert metrics["mse_per_horizon"] == pytest.approx([9 / 14, 16 / 14])
    assert metrics["translation_rmse_per_horizon"] == pytest.approx([(9 / 2) ** 0.5, 0])
    assert metrics["rotation_rmse_per_horizon"] == pytest.approx([0, (16 / 2) ** 0.5])
    assert metrics["action_names"] == ["dx", "dy", "dz", "da", "db", "dr", "gripper"]


def test_dimensions_are_told_apart_by_their_units():
    """Joint angles and one length that stand apart: the groups are not neighbours."""
    actions = ActionSpec(("j1", "lift", "j2"), ("deg", "mm", "deg"), horizon=2, rate_hz=10.0)
    target = np.zeros((1, 2, 3))
    predicted = target.copy()
    predicted[0, 0], predicted[0, 1] = (3.0, 1.0, 4.0), (0.0, 2.0, 0.0)
    metrics = action_metrics(predicted, target, actions)
    assert metrics["action_names"] == ["j1", "lift", "j2"]
    assert metrics["translation_mse"] == pytest.approx((1 + 4) / 2)
    assert metrics["rotation_mse"] == pytest.approx(25 / 4)
    assert metrics["motion_mse"] == metrics["overall_mse"] == pytest.approx(30 / 6)
    assert metrics["translation_rmse_per_horizon"] == pytest.approx([1.0, 2.0])
    assert metrics["rotation_rmse_per_horizon"] == pytest.approx([5.0, 0.0])


def test_groups_without_dimensions_are_null():
    actions = ActionSpec(("open", "close"), ("", ""), horizon=2, rate_hz=10.0)
    metrics = action_metrics(np.ones((3, 2, 2)), np.zeros((3, 2, 2)), actions)
    assert metrics["overall_mse"] == 1.0
    for name in ("motion_mse", "motion_mae", "first_motion_mse", "translation_mse", "rotation_mse"):
        assert metrics[name] is None
    assert metrics["translation_rmse_per_horizon"] == metrics["rotation_rmse_per_horizon"] == [None, None]
    json.dumps(metrics, allow_nan=False)


def test_constant_dimensions_have_no_correlation_and_no_r2():
    predicted, target = chunks()
    predicted[..., 5] = 0.25
    target[..., 6] = 1.0
    metrics = action_metrics(predicted, target, LAB_ACTIONS)
    assert metrics["correlations"][5] is None
    assert metrics["correlations"][6] is None
    assert metrics["r2_per_dim"][5] is not None  # a constant prediction of a varying target is merely bad
    assert metrics["r2_per_dim"][6] is None
    assert metrics["first_r2_per_dim"][6] is None
    json.dumps(metrics, allow_nan=False)


def test_correlations_are_of_first_actions():
    predicted, target = chunks()
    expected = [np.corrcoef(predicted[:, 0, dim], target[:, 0, dim])[0, 1] for dim in range(7)]
    assert action_metrics(predicted, target, LAB_ACTIONS)["correlations"] == pytest.approx(expected)


def test_r2_is_one_minus_residual_over_variance():
    predicted, target = chunks()
    residual = np.square(predicted.astype(float) - target).sum(axis=(0, 1))
    variance = np.square(target.astype(float) - target.mean(axis=(0, 1), dtype=float)).sum(axis=(0, 1))
    assert r2_per_dim(predicted, target) == pytest.approx(list(1 - residual / variance))
    mean = np.broadcast_to(target.mean(axis=(0, 1), dtype=float), target.shape)
    assert r2_per_dim(mean, target) == pytest.approx([0.0] * 7, abs=1e-12)
    assert r2_per_dim(target, target) == [1.0] * 7


def test_no_samples_give_nulls_of_the_same_layout():
    empty = action_metrics(np.zeros((0, 8, 7)), np.zeros((0, 8, 7)), LAB_ACTIONS)
    full = action_metrics(*chunks(), LAB_ACTIONS)
    assert empty.keys() == full.keys()
    assert empty["samples"] == 0
    assert empty["overall_mse"] is None
    for name, value in full.items():
        if isinstance(value, list) and name != "action_names":
            assert empty[name] == [None] * len(value)


def test_accumulates_in_float64():
    target = np.full((40_000, 1, 7), 1000.0, np.float32)
    predicted = target + np.float32(0.0625)
    assert action_metrics(predicted, target, LAB_ACTIONS)["overall_mse"] == pytest.approx(
        0.0625**2, rel=1e-12
    )


def test_subsets_and_segments_are_metrics_of_their_samples():
    predicted, target = chunks()
    has_sensor = np.arange(30) % 3 > 0
    near = np.arange(30) > 20
    metrics = metrics_of_subsets(
        predicted, target, has_sensor, {"near_target": near, "none": near & ~near}, LAB_ACTIONS
    )
    assert metrics["overall_mse"] == action_metrics(predicted, target, LAB_ACTIONS)["overall_mse"]
    assert metrics["subsets"]["with_sensor"] == action_metrics(
        predicted[has_sensor], target[has_sensor], LAB_ACTIONS
    )
    assert metrics["subsets"]["without_sensor"] == action_metrics(
        predicted[~has_sensor], target[~has_sensor], LAB_ACTIONS
    )
    assert metrics["segments"]["near_target"]["all"] == action_metrics(
        predicted[near], target[near], LAB_ACTIONS
    )
    both = near & has_sensor
    assert metrics["segments"]["near_target"]["with_sensor"] == action_metrics(
        predicted[both], target[both], LAB_ACTIONS
    )
    assert metrics["segments"]["none"]["all"]["samples"] == 0


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 8, 7\).*\(2, 7, 7\)"):
        action_metrics(np.zeros((2, 8, 7)), np.zeros((2, 7, 7)), LAB_ACTIONS)


@settings(max_examples=30)
@given(CHUNKS, st.randoms(use_true_random=False))
def test_metrics_do_not_depend_on_the_order_of_samples(target, random):
    predicted = target + np.linspace(-1, 1, target.size).reshape(target.shape)
    order = list(range(len(target)))
    random.shuffle(order)
    for name, value in action_metrics(predicted, target, LAB_ACTIONS).items():
        if name in ("action_names",) or (isinstance(value, list) and None in value):
            continue
        assert action_metrics(predicted[order], target[order], LAB_ACTIONS)[name] == pytest.approx(
            value, rel=1e-6, abs=1e-9
        )


@settings(max_examples=30)
@given(CHUNKS, CHUNKS)
def test_bounds(predicted, target):
    predicted = np.resize(predicted, target.shape)
    metrics = action_metrics(predicted, target, LAB_ACTIONS)
    assert metrics["overall_mse"] >= metrics["overall_mae"] ** 2 - 1e-9  # Jensen
    assert metrics["overall_mse"] == pytest.approx(np.mean(metrics["mse_per_dim"]))
    assert metrics["overall_mse"] == pytest.approx(np.mean(metrics["mse_per_horizon"]))
    assert all(value is None or -1 <= value <= 1 for value in metrics["correlations"])
    assert all(value is None or value <= 1 for value in metrics["r2_per_dim"])
    json.dumps(metrics, allow_nan=False)


@settings(max_examples=30)
@given(st.floats(0.1, 10), st.floats(-3, 3))
def test_correlation_ignores_scale_and_offset(scale, offset):
    _, target = chunks(samples=12, horizon=1)
    moved = target.astype(float) * scale + offset
    assert correlations(moved[:, 0], target[:, 0]) == pytest.approx([1.0] * LAB_ACTIONS.size)
    assert correlations(-moved[:, 0], target[:, 0]) == pytest.approx([-1.0] * LAB_ACTIONS.size)
