"""The scripted demonstrator as a feedback law."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.phantom.demonstrator import (
    InsertionState,
    SpeedVariation,
    demonstrator_action,
    demonstrator_velocity,
)

SURFACE = 60.0


def state(x=0.0, y=0.0, depth=0.0, angles=(0.0, 0.0, 0.0), *, is_punctured=True, membrane=2.0, target=6.0):
    """The tip at (x, y) from the marker and `depth` below the surface."""
    pose = np.array([190.0 + x, y, SURFACE - depth, *angles])
    return InsertionState(pose, (190.0, 0.0), SURFACE, membrane, target, is_punctured)


offsets = st.floats(-5.0, 5.0)


@given(offsets, offsets, st.floats(-9.0, 9.0), st.tuples(offsets, offsets, offsets), st.booleans())
def test_moves_towards_the_goal_within_the_recorded_size(x, y, depth, angles, is_punctured):
    action = demonstrator_action(state(x, y, depth, angles, is_punctured=is_punctured), 0.1)
    assert action.shape == (7,)
    assert np.abs(action[:6]).max() < 0.6
    assert action[6] == 1.0
    assert (action[:2] * [x, y] <= 0).all()
    assert (action[3:6] * angles <= 0).all()


@given(st.floats(0.01, 6.0), st.floats(0.0, 2 * np.pi))
def test_lateral_speed_is_a_saturating_function_of_the_remaining_offset(distance, direction):
    offset = distance * np.array([np.cos(direction), np.sin(direction)])
    velocity = demonstrator_velocity(state(*offset, depth=-6.0))[:2]
    np.testing.assert_allclose(velocity, -offset / distance * 3.0 * np.tanh(0.8 * distance / 3.0), atol=1e-9)


def test_waits_above_the_phantom_until_it_is_aligned():
    assert demonstrator_velocity(state(2.0, 1.0, depth=-6.0))[2] == 0.0
    assert demonstrator_velocity(state(angles=(3.0, 0.0, 0.0), depth=-6.0))[2] == 0.0
    assert demonstrator_velocity(state(0.05, 0.05, depth=-6.0))[2] < -3.0


def test_slows_down_on_contact_and_while_it_pushes_the_membrane():
    far, near, in_gel = (-demonstrator_velocity(state(depth=depth))[2] for depth in (-6.0, -0.3, 1.0))
    pushing = -demonstrator_velocity(state(depth=2.3, is_punctured=False))[2]
    punctured = -demonstrator_velocity(state(depth=2.3))[2]
    assert in_gel == pytest.approx(punctured, rel=0.01)
    assert far > 1.5 * near
    assert near > in_gel > 1.5 * pushing > 0


def test_stops_past_the_target_surface_and_comes_back_when_too_deep():
    speeds = [
        -demonstrator_velocity(state(depth=6.3 - remaining))[2] for remaining in (2.0, 1.0, 0.3, 0.0, -0.3)
    ]
    assert (np.diff(speeds) < 0).all()
    assert speeds[3] == pytest.approx(0.0, abs=1e-9)
    assert speeds[4] < 0
    assert state(depth=6.3).is_at_stop
    assert not state(depth=6.2).is_at_stop


@given(st.floats(0.3, 4.0), st.floats(4.5, 8.5))
def test_near_the_target_only_the_distance_to_it_matters(remaining, target):
    """The stop must be readable from the A-scan, which shows distances ahead of the tip."""
    one = demonstrator_velocity(state(depth=6.3 - remaining, target=6.0))
    other = demonstrator_velocity(state(depth=target + 0.3 - remaining, target=target))
    np.testing.assert_allclose(one, other, atol=1e-9)


def test_depends_on_the_state_alone():
    here = state(1.0, -2.0, depth=-5.0, angles=(1.0, 2.0, 3.0))
    np.testing.assert_array_equal(demonstrator_velocity(here), demonstrator_velocity(replace(here)))


def test_speed_variation_is_small_slow_and_seeded():
    first, second = (SpeedVariation(np.random.default_rng(1)) for _ in range(2))
    factors = np.array([first.step(0.1) for _ in range(4000)])
    np.testing.assert_array_equal(factors[:5], [second.step(0.1) for _ in range(5)])
    assert factors.mean() == pytest.approx(1.0, abs=0.02)
    assert factors.std() == pytest.approx(0.05, rel=0.15)
    assert np.corrcoef(factors[1:], factors[:-1])[0, 1] == pytest.approx(np.exp(-0.25), abs=0.05)
