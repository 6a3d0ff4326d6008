"""Demonstrations in memory."""

import numpy as np
import pytest

from experiments.phantom.recording import Recording, find_segments, record_demonstration
from experiments.phantom.simulator import PhantomSimulator


@pytest.fixture(scope="module")
def recording() -> Recording:
    simulator = PhantomSimulator(image_size=28)
    return record_demonstration(simulator, np.random.SeedSequence(0, spawn_key=(3,)))


@pytest.fixture(scope="module")
def motions() -> list[Recording]:
    simulator = PhantomSimulator(has_sensor=False, has_images=False)
    return [record_demonstration(simulator, np.random.SeedSequence(1, spawn_key=(i,))) for i in range(30)]


def duration(recording, name):
    return sum(s.end_s - s.start_s for s in recording.segments if s.name == name)


def test_rates_and_lengths(recording):
    np.testing.assert_allclose(np.diff(recording.pose_times_s), 0.01, atol=1e-9)
    assert recording.pose_times_s[0] == 0.0
    assert recording.poses.shape == (len(recording.pose_times_s), 6)
    assert recording.sensor.shape == (len(recording.sensor_times_s), 1026)
    assert recording.sensor.dtype == np.float16
    # A whole window before the first pose, none after the last.
    assert len(recording.sensor) == 65 * (1 + (len(recording.poses) - 1) // 10)
    np.testing.assert_allclose(np.diff([time for time, _ in recording.images]), 0.2, atol=1e-9)


def test_recorded_values_have_the_size_of_real_ones(recording):
    ascans = recording.sensor[:, 1:].astype(np.float32)
    assert 35 < ascans.mean() < 65
    assert ascans.min() >= -28
    assert ascans.max() <= 290
    assert np.isfinite(recording.sensor).all()


def test_episodes_have_the_length_and_the_parts_that_training_needs(motions):
    lengths = [recording.pose_times_s[-1] for recording in motions]
    assert 11.5 < np.mean(lengths) < 16
    assert max(lengths) < 20
    align = np.mean([duration(r, "align") / r.pose_times_s[-1] for r in motions])
    assert align > 0.25
    for recording in motions:
        assert 1.4 < duration(recording, "hold") < 2.6
        assert duration(recording, "approach") > 0.5
        assert duration(recording, "near_target") > 2.0
        assert duration(recording, "insert") > 2.0


def test_motion_is_within_the_recorded_size_and_ends_at_the_stop(motions):
    for recording in motions:
        ticks = recording.poses[::10]
        assert np.abs(np.diff(ticks, axis=0)).max() < 0.6
        depth = recording.scenario.surface_z_mm - ticks[-1, 2]
        assert depth - recording.scenario.target_mm == pytest.approx(0.3, abs=0.06)


def test_segments_hold_what_their_names_say(recording):
    scenario = recording.scenario
    ticks = np.arange(0, len(recording.poses) - 1, 10)
    time, pose = recording.pose_times_s[ticks], recording.poses[ticks]
    depth = scenario.surface_z_mm - pose[:, 2]

    def inside(name):
        return np.any(
            [(s.start_s <= time) & (time < s.end_s) for s in recording.segments if s.name == name], axis=0
        )

    near = np.abs(depth - scenario.target_mm)
    np.testing.assert_array_equal(
        inside("near_target")[np.abs(near - 1) > 0.01], (near <= 1.0)[np.abs(near - 1) > 0.01]
    )
    assert (depth[inside("align")] < 0).all()
    assert np.linalg.norm(pose[inside("align"), :2] - scenario.marker_xy_mm, axis=1).max() > 1.4
    assert np.linalg.norm(pose[inside("approach"), :2] - scenario.marker_xy_mm, axis=1).max() < 0.16
    assert np.abs(depth[inside("hold")] - scenario.target_mm - 0.3).max() < 0.05
    # Every tick is in exactly one of the stretches that follow one another.
    in_turn = sum(inside(name).astype(int) for name in ("align", "approach", "insert", "hold"))
    assert (in_turn == 1).all()


def test_segments_may_occur_several_times():
    simulator = PhantomSimulator(has_sensor=False, has_images=False)
    simulator.reset(0)
    states = []
    for dx in (0.0, 0.0, 0.0):
        states.append(simulator.state)
        simulator.step(np.array([dx, 0, 0, 0, 0, 0, 1.0]))
    there = state_at_marker(simulator)
    segments = find_segments([*states, there, *states])
    assert [s.name for s in segments] == ["align", "align", "approach"]
    assert [(round(s.start_s, 2), round(s.end_s, 2)) for s in segments] == [
        (-0.05, 0.25),
        (0.35, 0.65),
        (0.25, 0.35),
    ]


def state_at_marker(simulator):
    """The state right above the marker."""
    state = simulator.state
    pose = np.array([*state.marker_xy_mm, state.surface_z_mm + 3.0, 0, 0, 0])
    return type(state).of(simulator.scenario, simulator.time_s, pose, False)


def test_without_sensor_and_images_nothing_is_made_up(motions):
    assert motions[0].sensor is None
    assert motions[0].images == []


def test_a_simulator_can_be_used_again():
    simulator = PhantomSimulator(has_sensor=False, has_images=False)
    seed = np.random.SeedSequence(1, spawn_key=(4,))
    first, second = record_demonstration(simulator, seed), record_demonstration(simulator, seed)
    np.testing.assert_array_equal(first.poses, second.poses)
