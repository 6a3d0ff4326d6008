"""The closed loop."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.phantom import PhantomSimulator, demonstrator_action
from experiments.phantom.camera import NEEDLE_LENGTH_MM, VIEWS
from experiments.phantom.demonstrator import STOP_DEPTH_MM
from experiments.phantom.scenario import draw_scenario
from experiments.phantom.simulator import MAX_STEP, STEP_S


def run(simulator, seed, actions):
    """Readings and traces of an episode with given actions."""
    readings, traces = [simulator.reset(seed)], [simulator.trace]
    for action in actions:
        readings.append(simulator.step(action))
        traces.append(simulator.trace)
    return readings, traces


def follow_demonstrator(simulator, num_steps, until=lambda state: False):
    for _ in range(num_steps):
        if until(simulator.state):
            break
        simulator.step(demonstrator_action(simulator.state, STEP_S))
    return simulator.state


def blind():
    return PhantomSimulator(has_sensor=False, has_images=False)


ACTIONS = np.random.default_rng(0).uniform(-0.2, 0.2, (4, 7))


def test_reading_is_what_a_policy_needs():
    readings, _ = run(PhantomSimulator(image_size=56, sensor_rows=130), 0, ACTIONS)
    for tick, reading in enumerate(readings):
        assert reading.time_s == pytest.approx(0.1 * tick)
        assert reading.pose.shape == (6,)
        assert tuple(reading.images) == VIEWS
        assert reading.images["View2"].shape == (56, 56, 3)
        assert reading.sensor.shape == (130, 1026)
        assert reading.sensor.dtype == np.float32
        assert 0 <= reading.time_s - reading.image_time_s <= 0.2
    assert [o.image_time_s for o in readings] == pytest.approx([-0.01, -0.01, 0.19, 0.19, 0.39])


def test_equal_seeds_and_actions_give_equal_readings():
    first, _ = run(PhantomSimulator(image_size=56), 5, ACTIONS)
    simulator = PhantomSimulator(image_size=56)
    run(simulator, 6, ACTIONS[:2])  # what happened before must not matter
    sequence = np.random.SeedSequence(5)
    for _ in range(2):
        second, _ = run(simulator, sequence, ACTIONS)
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one.pose, other.pose)
            np.testing.assert_array_equal(one.sensor, other.sensor)
            np.testing.assert_array_equal(one.images["View1"], other.images["View1"])
    third, _ = run(simulator, 6, ACTIONS)
    assert (third[-1].sensor != first[-1].sensor).any()


def test_leaving_out_a_sensor_changes_nothing_else():
    full, _ = run(PhantomSimulator(image_size=56), 5, ACTIONS)
    poses_only, _ = run(blind(), 5, ACTIONS)
    no_sensor, _ = run(PhantomSimulator(image_size=56, has_sensor=False), 5, ACTIONS)
    for one, two, three in zip(full, poses_only, no_sensor, strict=True):
        np.testing.assert_array_equal(one.pose, two.pose)
        np.testing.assert_array_equal(one.images["View3"], three.images["View3"])
        assert two.sensor is None
        assert two.images == {}


def test_windows_are_the_end_of_the_recorded_stream():
    readings, traces = run(PhantomSimulator(has_images=False, sensor_rows=650), 1, ACTIONS)
    stream = np.concatenate([trace.sensor for trace in traces])
    times = np.concatenate([trace.sensor_times_s for trace in traces])
    np.testing.assert_allclose(np.diff(times), 1 / 650)
    assert times[0] == pytest.approx(-0.1)
    for tick, reading in enumerate(readings):
        rows = 65 * (tick + 1)
        assert times[rows - 1] < reading.time_s <= times[rows - 1] + 1 / 650 + 1e-9
        np.testing.assert_array_equal(reading.sensor[650 - rows :], stream[:rows])
        # Before the stream's start its first row is repeated.
        np.testing.assert_array_equal(reading.sensor[0], stream[0])


def test_a_step_executes_the_action_with_small_noise():
    simulator = blind()
    start = simulator.reset(2).pose
    moved = simulator.step(np.array([0.3, -0.2, -0.1, 0.5, 0.0, -0.5, 1.0])).pose - start
    np.testing.assert_allclose(moved, [0.3, -0.2, -0.1, 0.5, 0.0, -0.5], atol=0.08)
    poses = simulator.trace.poses
    assert poses.shape == (10, 6)
    np.testing.assert_allclose(np.diff(poses[:, 0]), 0.03, atol=0.005)


def test_the_motion_has_a_few_micrometres_of_noise():
    simulator = blind()
    simulator.reset(2)
    positions = np.array([simulator.step(np.zeros(7)).pose[:3] for _ in range(60)])
    assert 0.002 < np.diff(positions, axis=0).std() < 0.006


def test_the_robot_cannot_be_driven_arbitrarily():
    simulator = blind()
    start = simulator.reset(2).pose
    moved = simulator.step(np.array([50.0, 0, 0, 0, -90.0, 0, 1.0])).pose - start
    assert moved[0] == pytest.approx(MAX_STEP[0], abs=0.03)
    assert moved[4] == pytest.approx(-MAX_STEP[4], abs=0.1)
    for _ in range(40):
        simulator.step(np.array([0, 0, -1.0, 0, 0, 0, 1.0]))
    assert simulator.state.depth_mm == pytest.approx(NEEDLE_LENGTH_MM - 0.5, abs=1e-6)


@pytest.mark.parametrize("action", [np.full(7, np.nan), np.zeros(5), np.zeros((1, 7))])
def test_refuses_what_is_no_action(action):
    simulator = blind()
    simulator.reset(0)
    with pytest.raises(ValueError, match="7 finite numbers"):
        simulator.step(action)


def test_refuses_an_empty_window():
    with pytest.raises(ValueError, match="sensor_rows"):
        PhantomSimulator(sensor_rows=0)


@pytest.mark.parametrize("seed", range(8))
def test_the_demonstrator_reaches_the_stop_from_anywhere(seed):
    simulator = blind()
    simulator.reset(seed)
    state = follow_demonstrator(simulator, 200)
    assert state.depth_mm - simulator.scenario.target_mm == pytest.approx(STOP_DEPTH_MM, abs=0.04)
    assert np.linalg.norm(state.lateral_mm) < 0.05
    assert state.is_punctured


def test_the_demonstrator_recovers_from_disturbances():
    """It feeds back the state: pushed aside on the way and too deep at the end, it still ends at the stop."""
    simulator = blind()
    simulator.reset(0)
    follow_demonstrator(simulator, 300, until=lambda state: state.is_aligned)
    for _ in range(3):
        simulator.step(np.array([0.8, 0.5, 0, 2.0, 0, 0, 1.0]))
    follow_demonstrator(simulator, 300, until=lambda state: state.is_at_stop)
    simulator.step(np.array([0, 0, -0.8, 0, 0, 0, 1.0]))
    assert simulator.state.remaining_mm < -0.7
    assert follow_demonstrator(simulator, 60).is_at_stop


def test_force_shows_contact_and_puncture():
    simulator = PhantomSimulator(has_images=False)
    simulator.reset(4)
    scenario = simulator.scenario
    forces, depths = [], []
    while not simulator.state.is_at_stop:
        reading = simulator.step(demonstrator_action(simulator.state, STEP_S))
        forces.append(reading.sensor[:, 0])
        depths.append(simulator.state.depth_mm)
    force = np.array(forces) - scenario.force_offset
    depth = np.array(depths)
    assert np.abs(force[depth < -0.3]).max() < 0.06
    peak = force.max(axis=1).argmax()
    assert scenario.membrane_mm + 0.3 < depth[peak] < scenario.membrane_mm + 1.1
    # Cutting and friction hold the needle back in the gel, more and more.
    in_gel = force.mean(axis=1)[(depth > scenario.membrane_mm + 1.2) & (depth < scenario.target_mm - 0.5)]
    assert in_gel.min() > 0.05
    assert in_gel[-1] > in_gel[0] + 0.02
    assert force.max() == pytest.approx(scenario.force_gain * scenario.puncture_n, abs=0.12)


def test_the_ascan_shows_the_way_to_the_target():
    """The front of the target layer comes nearer by what the tip moves, in 5 um bins."""
    simulator = PhantomSimulator(has_images=False, sensor_rows=65)
    simulator.reset(4)
    follow_demonstrator(simulator, 200, until=lambda state: state.remaining_mm < 3.0)
    reading = simulator.step(np.zeros(7))
    scan = reading.sensor[:, 1:].mean(axis=0)
    scan = np.convolve(scan, np.ones(9) / 9, mode="same")
    ahead = simulator.scenario.target_mm - simulator.state.depth_mm
    edge = 300 + np.argmax(np.convolve(scan, np.repeat([1, -1], 40), mode="valid")[260:700]) + 0
    assert edge * 0.005 == pytest.approx(ahead, abs=0.1)


def test_a_given_scenario_replaces_the_drawn_one():
    scenario = replace(draw_scenario(np.random.default_rng(0)), target_mm=5.0, marker="Blue")
    simulator = blind()
    simulator.reset(0, scenario)
    assert simulator.scenario is scenario
    assert follow_demonstrator(simulator, 200).depth_mm == pytest.approx(5.0 + STOP_DEPTH_MM, abs=0.04)
