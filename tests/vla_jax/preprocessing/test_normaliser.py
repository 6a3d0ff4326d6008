"""Normalisation: what goes in has the promised scale, and comes out as it was."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.preprocessing.config import NormalisationConfig
from vla_jax.preprocessing.normaliser import (
    feature_moments,
    is_two_valued,
    make_normaliser,
    motion_moments,
    state_moments,
)


def statistics_of(actions, windows):
    flat = actions.reshape(-1, actions.shape[-1])
    moments = lambda x: SimpleNamespace(mean=x.mean(0), std=x.std(0), min=x.min(0), max=x.max(0))  # noqa: E731
    force, ascan = windows[..., 0].reshape(-1, 1), windows[..., 1:]
    centred = np.array([force.std(), (ascan - ascan.mean((1, 2), keepdims=True)).std()])
    return {
        "actions": moments(flat),
        "force": moments(force),
        "sensor_centred": SimpleNamespace(mean=np.zeros(2), std=centred),
    }


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    actions = rng.normal(0.1, [0.3, 0.2, 0.5, 1.0, 2.0, 0.01, 0.0], (200, 8, 7))
    actions[..., 6] = 1.0
    windows = rng.normal(50.0, 20.0, (40, 65, 1026))
    windows[..., 0] = rng.normal(2.0, 0.5, (40, 65))
    return actions, windows


def make(data, **options):
    return make_normaliser(
        NormalisationConfig(**options), statistics_of(*data), np.zeros((3, 4)), np.ones((3, 4))
    )


@pytest.mark.parametrize("scaling", ["mean_std", "min_max", "none"])
def test_actions_come_back_in_mm_and_degrees(data, scaling):
    normaliser = make(data, actions=scaling)
    actions = data[0].astype(np.float32)
    there = normaliser.normalise_actions(jnp.asarray(actions))
    np.testing.assert_allclose(normaliser.denormalise_actions(there), actions, atol=1e-5)


def test_min_max_fills_the_range_the_sampler_clips_to_and_leaves_a_constant_at_zero(data):
    there = np.asarray(make(data, actions="min_max").normalise_actions(jnp.asarray(data[0])))
    np.testing.assert_allclose(there[..., :6].reshape(-1, 6).max(0), 1.0, atol=1e-5)
    np.testing.assert_allclose(there[..., :6].reshape(-1, 6).min(0), -1.0, atol=1e-5)
    np.testing.assert_array_equal(there[..., 6], 0.0)


@pytest.mark.parametrize("scaling", ["mean_std", "min_max"])
def test_a_constant_dimension_comes_back_as_the_constant_whatever_the_network_says(data, scaling):
    said = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 7)).astype(np.float32))
    np.testing.assert_array_equal(make(data, actions=scaling).denormalise_actions(said)[..., 6], 1.0)


def test_an_open_or_closed_gripper_is_scaled_by_its_two_values(data):
    actions, windows = data
    actions = actions.copy()
    # Open in one of fifty: by its deviation it would lie seven of them away.
    actions[..., 6] = np.arange(actions[..., 6].size).reshape(actions.shape[:2]) % 50 == 0
    normaliser = make((actions, windows), actions="mean_std")
    scaled = np.asarray(normaliser.normalise_actions(actions))
    assert set(np.unique(scaled[..., 6]).tolist()) == {-1.0, 1.0}
    np.testing.assert_allclose(normaliser.denormalise_actions(scaled)[..., 6], actions[..., 6], atol=1e-6)
    # The others are as they were.
    np.testing.assert_allclose(scaled[..., :6].std((0, 1)), 1.0, rtol=1e-5)


def test_only_two_values_count_as_two():
    def of(*values):
        x = np.array(values, float)[:, None]
        return bool(
            is_two_valued(SimpleNamespace(mean=x.mean(0), std=x.std(0), min=x.min(0), max=x.max(0)))[0]
        )

    assert of(0, 1, 1, 1)
    assert of(-3.0, 1e3, -3.0)
    assert not of(2.0, 2.0)
    assert not of(0, 1, 1, 0.99)
    assert not of(0, 0.5, 1)


def test_sensor_windows_have_unit_scale(data):
    there = np.asarray(make(data).normalise_sensor(jnp.asarray(data[1], jnp.float16)))
    assert abs(there[..., 0].mean()) < 0.02
    assert abs(there[..., 0].std() - 1) < 0.02
    assert abs(there[..., 1:].std() - 1) < 0.02


@settings(max_examples=20)
@given(offset=st.floats(-30, 30))
def test_an_offset_of_the_detector_changes_nothing(offset):
    rng = np.random.default_rng(1)
    window = rng.normal(50, 20, (2, 5, 11)).astype(np.float32)
    statistics = statistics_of(rng.normal(size=(4, 8, 7)), window.astype(np.float64))
    normaliser = make_normaliser(NormalisationConfig(), statistics, np.zeros((1, 1)), np.ones((1, 1)))
    moved = window.copy()
    moved[..., 1:] += np.float32(offset)
    np.testing.assert_allclose(
        normaliser.normalise_sensor(jnp.asarray(moved)),
        normaliser.normalise_sensor(jnp.asarray(window)),
        atol=2e-5,
    )


def test_centring_takes_one_number_out_of_a_window(data):
    """The profile over depth, which tells the layers apart, stays."""
    window = np.zeros((1, 65, 1026), np.float32)
    window[..., 1:] = np.linspace(20, 80, 1025)
    there = np.asarray(make(data).normalise_sensor(jnp.asarray(window)))[0, :, 1:]
    scale = statistics_of(*data)["sensor_centred"].std[1]
    np.testing.assert_allclose(
        there, np.broadcast_to(np.linspace(-30, 30, 1025) / scale, there.shape), atol=1e-4
    )


def test_none_leaves_everything_as_recorded(data):
    normaliser = make(data, actions="none", sensor="none", features="none")
    actions, windows = (x.astype(np.float32) for x in data)
    np.testing.assert_array_equal(normaliser.normalise_actions(jnp.asarray(actions)), actions)
    np.testing.assert_array_equal(normaliser.normalise_sensor(jnp.asarray(windows)), windows)


def test_moments_count_only_slots_that_are_there():
    rng = np.random.default_rng(0)
    features = rng.normal(3.0, 2.0, (500, 2, 5))
    mask = rng.random((500, 2)) < 0.6
    garbage = np.where(mask[..., None], features, 1e9)
    mean, std = feature_moments(garbage, mask, per_slot=True)
    for slot in range(2):
        np.testing.assert_allclose(mean[slot], features[mask[:, slot], slot].mean(0), rtol=1e-6)
        np.testing.assert_allclose(std[slot], features[mask[:, slot], slot].std(0), rtol=1e-6)


def test_moments_of_tokens_are_shared_and_an_absent_slot_is_harmless():
    features = np.random.default_rng(0).normal(size=(50, 3, 4))
    mask = np.ones((50, 3), bool)
    mask[:, 2] = False
    mean, std = feature_moments(features, mask, per_slot=False)
    assert mean.shape == std.shape == (1, 4)
    mean, std = feature_moments(features, mask, per_slot=True)
    np.testing.assert_array_equal(mean[2], 0.0)
    np.testing.assert_array_equal(std[2], 1.0)


def test_states_are_scaled_and_an_angle_a_turn_away_is_the_same():
    rng = np.random.default_rng(0)
    # An angle that lies around ±180 degrees, and one that goes through several turns.
    state = np.stack([rng.normal(190, 2, 500), rng.normal(180, 3, 500) % 360 - 180, rng.normal(5, 4, 500)], 1)
    state[:, 1] = np.where(state[:, 1] > 180, state[:, 1] - 360, state[:, 1])
    is_angle = np.array([False, True, True])
    moments = state_moments(state, is_angle)
    normaliser = make_normaliser(
        NormalisationConfig(),
        {
            "actions": SimpleNamespace(
                mean=np.zeros(7), std=np.ones(7), min=-2 * np.ones(7), max=2 * np.ones(7)
            )
        },
        np.zeros((1, 4)),
        np.ones((1, 4)),
        moments,
    )
    there = np.asarray(normaliser.normalise_state(jnp.asarray(state, jnp.float32)))
    np.testing.assert_allclose(there.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(there.std(axis=0), 1, atol=0.02)
    turned = np.asarray(
        normaliser.normalise_state(jnp.asarray(state + np.array([0, 360, -720]), jnp.float32))
    )
    np.testing.assert_allclose(turned, there, atol=1e-3)
    assert np.abs(normaliser.normalise_state(state[:1] + np.array([4, 0, 0]))[0, 0] - there[0, 0]) > 1.5


def test_a_state_that_never_changes_is_its_distance():
    moments = state_moments(np.full((9, 1), 30.0), np.array([True]))
    np.testing.assert_allclose([moments.offset[0], moments.scale[0]], [30, 1])


def motion_normaliser(data, motion):
    return make_normaliser(
        NormalisationConfig(), statistics_of(*data), np.zeros((3, 4)), np.ones((3, 4)), motion=motion
    )


def test_motion_is_relative_to_the_newest_by_the_shorter_way_and_of_unit_size(data):
    rng = np.random.default_rng(2)
    # Far from where the base is, a value that stands still, and an angle about the turn.
    start = np.array([300.0, -5.0, 9.0, 0.0])
    walk = start + np.cumsum(rng.normal(size=(500, 5, 4)) * [0.1, 0.02, 0.0, 0.5], axis=1)
    walk[..., 3] = (walk[..., 3] + 179.0 + 180.0) % 360.0 - 180.0
    mask = rng.random((500, 5)) < 0.8
    mask[:, -1] = True
    moments = motion_moments(walk, mask, np.array([False, False, False, True]))
    assert moments.scale[2] == 1.0
    normaliser = motion_normaliser(data, moments)
    found = np.asarray(normaliser.normalise_motion(walk, mask))
    size = np.sqrt(np.mean(np.square(found[:, :-1][mask[:, :-1]]), axis=0))
    np.testing.assert_allclose(size, [1, 1, 0, 1], atol=2e-3)
    np.testing.assert_array_equal(found[~mask], 0.0)
    np.testing.assert_array_equal(found[:, -1], 0.0)
    elsewhere = walk + np.array([50.0, 7.0, -3.0, 360.0])
    np.testing.assert_allclose(normaliser.normalise_motion(elsewhere, mask), found, atol=2e-3)
    by_hand = (walk[:, 1, 0] - walk[:, -1, 0]) / moments.scale[0]
    np.testing.assert_allclose(found[:, 1, 0], np.where(mask[:, 1], by_hand, 0), atol=1e-3)


def test_windows_of_states_that_are_not_there_have_unit_scale():
    moments = motion_moments(np.zeros((3, 4, 2)), np.zeros((3, 4), bool), np.array([False, True]))
    np.testing.assert_array_equal(moments.scale, 1.0)
