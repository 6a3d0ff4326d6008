"""What is drawn for an episode."""

import json

import numpy as np
import pytest

from experiments.phantom.scenario import MARKER_COLOURS, Scenario, draw_scenario


@pytest.fixture(scope="module")
def scenarios() -> list[Scenario]:
    return [draw_scenario(np.random.default_rng(seed)) for seed in range(1500)]


def test_equal_seeds_give_equal_scenarios(scenarios):
    assert draw_scenario(np.random.default_rng(7)) == scenarios[7]
    assert scenarios[7] != scenarios[8]


def test_everything_stays_in_its_range(scenarios):
    offsets = np.array([scenario.lateral_offset_mm for scenario in scenarios])
    assert np.abs(offsets).max() <= 4.0
    assert np.linalg.norm(offsets, axis=1).min() >= 1.5
    membranes = np.array([scenario.membrane_mm for scenario in scenarios])
    targets = np.array([scenario.target_mm for scenario in scenarios])
    assert membranes.min() > 0.5
    assert np.ptp(membranes) > 2.0
    assert np.ptp(targets) > 4.5
    # A membrane is pierced before the target layer is near: at most 0.8 mm of deflection.
    assert (targets - membranes).min() > 0.9
    heights = [scenario.start_pose[2] - scenario.surface_z_mm for scenario in scenarios]
    assert min(heights) >= 4.5
    assert {scenario.marker for scenario in scenarios} == set(MARKER_COLOURS)


def test_what_the_cameras_see_says_nothing_about_the_layers(scenarios):
    visible = np.array([[*s.start_pose, *s.marker_xy_mm, s.surface_z_mm, s.brightness] for s in scenarios])
    hidden = np.array([[s.membrane_mm, s.target_mm] for s in scenarios])
    both = np.corrcoef(np.hstack([visible, hidden]).T)
    assert np.abs(both[-2:, :-2]).max() < 0.1
    assert abs(both[-1, -2]) < 0.1


def test_the_tilt_cannot_be_told_from_where_the_marker_is(scenarios):
    tilts = np.array([scenario.start_pose[3:] for scenario in scenarios])
    offsets = np.array([scenario.lateral_offset_mm for scenario in scenarios])
    assert np.abs(np.corrcoef(np.hstack([tilts, offsets]).T)[:3, 3:]).max() < 0.1
    assert (tilts.std(axis=0) > 2).all()


def test_names_follow_the_marker_and_json_holds_the_truth(scenarios):
    scenario = scenarios[0]
    assert scenario.task == f"{scenario.marker}_point"
    assert scenario.marker.lower() in scenario.instruction
    truth = json.loads(json.dumps(scenario.to_json()))
    assert truth["target_mm"] == scenario.target_mm
    assert truth["lateral_offset_mm"] == list(scenario.lateral_offset_mm)
