"""The force on the needle: capsule, puncture, cutting, friction (Okamura et al. 2004)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.phantom.needle_force import (
    NeedleForceParameters,
    NeedleForceState,
    capsule_force,
    cutting_force,
    friction_per_mm,
    needle_force,
)
from experiments.phantom.tissue import TissueLayers

PARAMETERS = NeedleForceParameters()
LAYERS = TissueLayers(membrane_mm=2.0, target_mm=6.0)
SPEED = 1.5


UNTOUCHED = NeedleForceState()


def insert(start_mm, end_mm, state=UNTOUCHED, speed=SPEED, num_samples=4001):
    depth = np.linspace(start_mm, end_mm, num_samples)
    return depth, *needle_force(PARAMETERS, LAYERS, state, depth, speed)


def test_capsule_is_the_nonlinear_spring_of_the_model():
    deflection = np.array([-1.0, 0.0, 0.5])
    expected = [0.0, 0.0, 0.25 * 0.5 + 0.60 * 0.25]
    np.testing.assert_allclose(capsule_force(PARAMETERS, deflection), expected)


def test_nothing_is_felt_above_the_surface():
    _, force, membrane, state = insert(-5.0, -0.1)
    assert not force.any()
    np.testing.assert_array_equal(membrane, 2.0)
    assert not state.is_punctured


def test_force_rises_to_the_puncture_and_drops():
    depth, force, membrane, state = insert(0.5, 5.0)
    puncture = np.argmin(np.diff(force)) + 1
    deflection = depth[puncture] - LAYERS.membrane_mm
    assert state.is_punctured
    # The drop is the capsule's force, and it comes where the spring reaches the puncture force.
    assert force[puncture - 1] - force[puncture] == pytest.approx(PARAMETERS.puncture_n, abs=0.01)
    assert capsule_force(PARAMETERS, deflection) == pytest.approx(PARAMETERS.puncture_n, abs=0.01)
    pressing = (depth > 2.0) & (np.arange(depth.size) < puncture)
    assert (np.diff(force[pressing]) > 0).all()
    # The tip carries the membrane along until then, and it springs back.
    np.testing.assert_allclose(membrane[pressing], depth[pressing])
    np.testing.assert_array_equal(membrane[puncture:], 2.0)


def test_a_punctured_membrane_stays_open():
    *_, state = insert(0.5, 5.0)
    _, force, membrane, state = insert(1.0, 4.0, state)
    assert state.is_punctured
    assert force.max() < PARAMETERS.puncture_n / 2
    np.testing.assert_array_equal(membrane, 2.0)


def test_a_membrane_pushed_too_little_holds_and_springs_back():
    *_, state = insert(0.5, 2.2)
    assert not state.is_punctured
    depth, force, membrane, state = insert(2.2, 1.5, state, speed=-SPEED)
    assert not state.is_punctured
    np.testing.assert_array_equal(membrane, np.maximum(depth, 2.0))
    # Friction holds the needle that is pulled out.
    assert force[-1] < cutting_force(PARAMETERS, LAYERS, depth[-1:])[0]


@given(st.floats(0.5, 5.5), st.floats(0.2, 4.0))
def test_friction_is_proportional_to_the_inserted_length(depth_mm, speed):
    state = NeedleForceState(is_punctured=True)
    friction = []
    for depth in (depth_mm, depth_mm / 2):
        force, *_ = needle_force(PARAMETERS, LAYERS, state, np.array([depth]), speed)
        friction.append(force[0] - cutting_force(PARAMETERS, LAYERS, np.array([depth]))[0])
    assert friction[0] == pytest.approx(2 * friction[1], rel=1e-6)
    assert friction[0] == pytest.approx(depth_mm * (0.012 + 0.004 * speed), rel=1e-6)


def test_friction_changes_sign_with_the_motion_and_sticks_at_rest():
    inwards = friction_per_mm(PARAMETERS, 1.0, 0.0)
    assert friction_per_mm(PARAMETERS, -1.0, 0.0) == -inwards
    at_rest = friction_per_mm(PARAMETERS, 0.0, inwards)
    assert at_rest == PARAMETERS.coulomb_n_per_mm  # the viscous part is gone, the static part stays
    assert friction_per_mm(PARAMETERS, 0.0, 0.005) == 0.005


def test_the_target_layer_is_felt_over_the_bevel():
    depth = np.array([5.9, 6.0, 6.2, 6.4, 7.0])
    excess = cutting_force(PARAMETERS, LAYERS, depth) - PARAMETERS.cutting_gel_n
    full = PARAMETERS.cutting_target_n - PARAMETERS.cutting_gel_n
    np.testing.assert_allclose(excess, [0, 0, full / 2, full, full], atol=1e-12)
