"""The phantom as an environment: what ends an episode, and what the demonstrator's own insertions are judged."""

import numpy as np
import pytest

from experiments.phantom import PhantomEnvironment, PhantomSimulator, demonstrator_action
from experiments.phantom.recorded_environment import RecordedPhantom
from experiments.phantom.simulator import STEP_S
from vla_jax.contracts.environment import Outcome
from vla_jax.contracts.specs import LAB_ACTIONS
from vla_jax.dataset.episode_packing import pack_episode
from vla_jax.dataset.options import EpisodeOptions
from vla_jax.dataset.packed_episode import load_packed
from vla_jax.evaluation.closed_loop import Rollout
from vla_jax.recordings.discovery import find_episodes
from vla_jax.reporting.film import MMODE_MM, make_film, mmode

STILL = np.array([0, 0, 0, 0, 0, 0, 1.0])


def blind(shift="none", **settings):
    simulator = PhantomSimulator(has_sensor=False, has_images=False, shift=shift)
    return PhantomEnvironment(simulator, **settings)


def demonstrate(environment, seed, *, disturb=lambda action: action):
    environment.reset(seed)
    while not environment.is_over():
        environment.step(disturb(demonstrator_action(environment.simulator.state, STEP_S)))
    return environment.outcome()


def test_the_demonstrator_succeeds():
    environment = blind()
    outcomes = [demonstrate(environment, seed) for seed in range(20)]
    assert sum(outcome.success for outcome in outcomes) >= 19
    errors = [outcome.measures["depth_error_um"] for outcome in outcomes]
    assert np.median(errors) < 60
    assert max(outcome.measures["lateral_um"] for outcome in outcomes) < 250
    # The membrane gives way at 0.3 to 0.5 N.
    assert all(0.25 < outcome.measures["peak_force_n"] < 0.7 for outcome in outcomes)
    assert max(outcome.measures["time_s"] for outcome in outcomes) < 20


def test_the_demonstrator_moves_along_with_breathing_tissue():
    environment = blind("breathing")
    outcomes = [demonstrate(environment, seed) for seed in range(20)]
    assert sum(outcome.success for outcome in outcomes) >= 19
    assert max(outcome.measures["depth_error_um"] for outcome in outcomes) < 120


def test_standing_still_never_enters_and_takes_all_the_time():
    environment = blind(time_limit_s=4.0)
    environment.reset(0)
    ticks = 0
    while not environment.is_over():
        environment.step(STILL)
        ticks += 1
    assert ticks == 40
    assert environment.outcome().failure == "never_entered"


@pytest.mark.parametrize(
    ("disturb", "failure"),
    [
        (lambda action: action * [1, 1, 0, 1, 1, 1, 1], "never_entered"),
        (lambda action: action * [0, 0, 0, 0, 0, 0, 1] + [0, 0, -0.3, 0, 0, 0, 0], "off_marker"),
    ],
)
def test_other_ways_fail_by_name(disturb, failure):
    outcome = demonstrate(blind(), 1, disturb=disturb)
    assert not outcome.success
    assert outcome.failure == failure


def test_pushing_on_is_too_deep_and_stopping_early_is_short():
    environment = blind()
    environment.reset(3)
    while environment.simulator.state.remaining_mm > 1.0:
        environment.step(demonstrator_action(environment.simulator.state, STEP_S))
    assert environment.outcome().failure == "did_not_stop"
    for _ in range(11):
        environment.step(STILL)
    assert environment.is_over()
    assert environment.outcome().failure == "stopped_short"
    for _ in range(8):
        environment.step(np.array([0, 0, -0.2, 0, 0, 0, 1.0]))
    assert environment.outcome().failure == "too_deep"
    assert environment.outcome().measures["overshoot_um"] == pytest.approx(600, abs=150)


def test_waiting_above_the_phantom_does_not_end_the_episode():
    environment = blind()
    environment.reset(0)
    for _ in range(15):
        environment.step(STILL)
    assert not environment.is_over()


def test_readings_are_the_simulators_and_a_reset_forgets():
    simulator = PhantomSimulator(image_size=28)
    environment = PhantomEnvironment(simulator)
    first = environment.reset(5)
    assert first.prompt == simulator.scenario.instruction
    assert first.sensor.shape == (65, 1026)
    assert sorted(first.images) == ["View1", "View2", "View3"]
    environment.step(STILL)
    assert len(environment.trace().tip_mm) == 2
    again = environment.reset(5)
    assert len(environment.trace().tip_mm) == 1
    np.testing.assert_array_equal(first.sensor, again.sensor)
    assert environment.actions is LAB_ACTIONS


def test_what_an_expert_would_do_is_told_beside_the_reading():
    environment = blind()
    reading = environment.reset(0)
    np.testing.assert_array_equal(
        reading.expert_action, demonstrator_action(environment.simulator.state, STEP_S)
    )


@pytest.mark.parametrize("seed", [7, 4_001_000_007])
def test_what_a_policy_did_is_recorded_with_what_should_have_been_done(tmp_path, seed):
    """An arm that stands still learns nothing from its motion, and everything from the corrections."""
    simulator = PhantomSimulator(image_size=28)
    environment = RecordedPhantom(simulator, tmp_path / "recorded", "lazy")
    expected = [environment.reset(seed).expert_action]
    for _ in range(12):
        expected.append(environment.step(STILL).expert_action)
    environment.outcome()
    (folder,) = (tmp_path / "recorded").glob("*/lazy_*")
    assert folder.name == f"lazy_{seed:08d}"
    (found,) = find_episodes([str(tmp_path / "recorded")])
    findings = pack_episode(found, EpisodeOptions(), tmp_path / "packed", "digest")
    assert [finding for finding in findings if finding.is_fault] == []
    arrays = load_packed(tmp_path / "packed").arrays
    np.testing.assert_allclose(arrays["delta"], expected[:12], atol=1e-6)
    assert arrays["is_sample"].all()
    np.testing.assert_allclose(arrays["pose"][0], arrays["pose"][-1], atol=0.2)


def test_the_scene_says_where_an_a_scan_s_echoes_come_from():
    """From 4 mm up in the air the surface is seen 4 mm below, though light is faster there."""
    environment = PhantomEnvironment(PhantomSimulator(has_images=False))
    readings = [environment.reset(4)]
    while environment.simulator.state.depth_mm < -4.0:
        readings.append(environment.step(np.array([0, 0, -0.5, 0, 0, 0, 1.0])))
    for _ in range(3):
        readings.append(environment.step(STILL))
    scene = environment.outcome().scene
    assert scene.layers_mm["membrane"] == environment.simulator.scenario.membrane_mm
    rollout = Rollout(
        4, Outcome(False, scene=scene), np.arange(len(readings)) / 10, np.zeros((len(readings), 6)),
        np.zeros((len(readings) - 1, 7)), np.zeros(1), np.zeros((1, 8, 7)), np.zeros(1),
    )  # fmt: skip
    film = make_film("best", rollout, readings, 0)
    column = mmode(film, scene, -1.0, 0.5)[:, -1].astype(float)
    assert -1.0 + column.argmax() * MMODE_MM == pytest.approx(0.0, abs=0.08)
