"""Scenarios outside the training distribution, and tissue that moves."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.phantom import PhantomSimulator
from experiments.phantom.scenario import UNSEEN_COLOURS, TissueMotion, draw_scenario
from experiments.phantom.shift import SHIFTS

STILL = np.array([0, 0, 0, 0, 0, 0, 1.0])


def drawn(name, seed):
    rng = np.random.default_rng(seed)
    return draw_scenario(rng), SHIFTS[name](draw_scenario(np.random.default_rng(seed)), rng)


@pytest.mark.parametrize("name", [name for name in SHIFTS if name != "none"])
def test_a_shift_leaves_the_range_that_is_drawn_in_training_and_changes_nothing_else(name):
    fields = {
        "speckle": {"ascan_noise_db"},
        "gain": {"ascan_gain", "force_gain"},
        "membrane": {"puncture_n", "membrane_mm"},
        "deeper": {"target_mm"},
        "shallower": {"target_mm", "membrane_mm"},
        "brightness": {"brightness"},
        "marker": {"marker"},
        "start": {"start_pose"},
        "breathing": {"motion", "hold_s"},
    }[name]
    ranges = [draw_scenario(np.random.default_rng(seed)) for seed in range(300)]
    for seed in range(20):
        before, after = drawn(name, seed)
        assert {key for key in vars(before) if getattr(before, key) != getattr(after, key)} <= fields
        main = sorted(fields)[-1] if name != "membrane" else "puncture_n"
        value = getattr(after, main)
        if isinstance(value, float):
            values = [getattr(scenario, main) for scenario in ranges]
            assert value > np.quantile(values, 0.99) or value < np.quantile(values, 0.01)
    assert drawn("none", 3)[0] == drawn("none", 3)[1]
    assert drawn("marker", 0)[1].marker in UNSEEN_COLOURS


def test_the_simulator_draws_shifted_scenarios():
    plain, shifted = (
        PhantomSimulator(has_sensor=False, has_images=False, shift=name) for name in ("none", "deeper")
    )
    plain.reset(5)
    shifted.reset(5)
    assert shifted.scenario.target_mm > 9 >= plain.scenario.target_mm
    assert replace(shifted.scenario, target_mm=plain.scenario.target_mm) == plain.scenario


def test_moving_tissue_moves_under_the_needle_and_in_the_pictures():
    scenario = replace(
        draw_scenario(np.random.default_rng(0)), motion=TissueMotion(amplitude_mm=1.0, rate_hz=0.5)
    )
    simulator = PhantomSimulator(image_size=56, has_sensor=False)
    first = simulator.reset(0, scenario)
    depths = [simulator.state.depth_mm]
    for _ in range(20):
        reading = simulator.step(STILL)
        depths.append(simulator.state.depth_mm)
    # A breath of two seconds: up and down by a millimetre, and back.
    assert np.ptp(depths) == pytest.approx(2.0, abs=0.1)
    assert depths[0] == pytest.approx(depths[-1], abs=0.05)
    assert np.argmax(depths) == 5
    middle = simulator.reset(0, replace(scenario, motion=TissueMotion(1.0, 0.5, phase=np.pi / 2)))
    for view in ("View2", "View3"):
        moved = np.abs(first.images[view].astype(float) - middle.images[view]).mean()
        same = np.abs(first.images[view].astype(float) - reading.images[view]).mean()
        assert moved > 2 * same


@given(
    st.floats(0.0, 2.0), st.floats(0.1, 0.5), st.floats(0.0, 6.3), st.floats(0.0, 6.3), st.floats(0.0, 26.0)
)
def test_moving_tissue_has_the_velocity_of_its_motion(amplitude, rate, phase, direction, time_s):
    motion = TissueMotion(amplitude, rate, phase, direction)
    between = np.subtract(motion.at(time_s + 5e-4), motion.at(time_s - 5e-4)) / 1e-3
    np.testing.assert_allclose(motion.velocity_at(time_s), between, atol=1e-4)


def test_still_tissue_is_where_it_was():
    scenario = draw_scenario(np.random.default_rng(1))
    assert scenario.at(3.3) == scenario
