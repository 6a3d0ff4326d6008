"""Nudges, and that what the demonstrator does against them is the label."""

import numpy as np
import pytest

from experiments.phantom import PhantomSimulator
from experiments.phantom.data_set import DataSetSettings
from experiments.phantom.demonstrator import demonstrator_action
from experiments.phantom.disturbance import Disturbance, Nudges
from experiments.phantom.recording import record_demonstration
from experiments.phantom.simulator import STEP_S


def nudges(is_inside, seed=0, **options):
    disturbance = Disturbance(**options)
    pushed = Nudges(disturbance, np.random.default_rng(seed))
    return np.array([pushed.step(STEP_S, is_inside) for _ in range(400)])


def test_nudges_are_rare_spread_over_steps_and_come_to_an_end():
    steps = nudges(False, every_s=1.0, steps=3, most=5)
    runs = np.flatnonzero(np.diff(np.r_[False, (steps != 0).any(axis=1), False].astype(int)))
    lengths = runs[1::2] - runs[::2]
    assert (steps != 0).any(axis=1).sum() == 15
    assert set(lengths % 3) == {0}  # two may follow each other
    assert not nudges(False, most=0).any()


def test_in_the_tissue_the_needle_is_pushed_along_itself_only():
    inside = nudges(True, every_s=0.3, most=1000, steps=1)
    assert not np.delete(inside, 2, axis=1).any()
    pushed = inside[inside[:, 2] != 0, 2]
    assert pushed.std() == pytest.approx(Disturbance().depth_mm, rel=0.2)
    above = nudges(False, every_s=0.3, most=1000, steps=1)
    assert (above[(above != 0).any(axis=1)].std(axis=0) > 0).all()


@pytest.fixture(scope="module")
def disturbed():
    simulator = PhantomSimulator(has_sensor=False, has_images=False, disturbance=Disturbance())
    return record_demonstration(simulator, np.random.SeedSequence(4))


def test_corrections_are_what_the_demonstrator_would_have_done(disturbed):
    """Of its state at the tick, but for its own varying speed; what was done is another thing where it was pushed."""
    ticks = disturbed.poses[::10]
    done = np.diff(ticks, axis=0)[: len(disturbed.corrections)]
    difference = np.linalg.norm((disturbed.corrections[:, :6] - done)[:, :3], axis=1)
    assert np.median(difference) < 0.02
    assert (difference > 0.1).sum() >= 6
    quiet = record_demonstration(
        PhantomSimulator(has_sensor=False, has_images=False), np.random.SeedSequence(4)
    )
    assert quiet.corrections is None


def test_the_demonstrator_comes_back_from_too_deep():
    simulator = PhantomSimulator(has_sensor=False, has_images=False)
    simulator.reset(0)
    while simulator.state.remaining_mm > -0.8:
        simulator.step(np.array([0, 0, -0.4, 0, 0, 0, 1.0]))
    assert demonstrator_action(simulator.state, STEP_S)[2] > 0.08


def test_a_share_of_the_episodes_is_disturbed_whatever_their_number():
    settings = DataSetSettings(seed=3, disturbed_fraction=0.3, sensorless_fraction=0.25)
    chosen = [settings.is_disturbed(index) for index in range(40)]
    assert sum(chosen) == 12
    assert not any(DataSetSettings(seed=3, disturbed_fraction=0).is_disturbed(index) for index in range(9))
    # Neither follows from the other.
    kinds = {(settings.is_disturbed(index), settings.has_sensor(index)) for index in range(40)}
    assert len(kinds) == 4
