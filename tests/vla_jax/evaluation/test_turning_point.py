import numpy as np
import pytest

from tests.vla_jax.evaluation.rollouts import LAYERS, lower, rollout
from vla_jax.contracts.environment import Outcome, Scene
from vla_jax.evaluation.turning_point import stage_of, turning_point


def through(*depths, sideways=0.0, layers=LAYERS):
    tip = np.array([[sideways, 0.0, depth] for depth in depths])
    outcome = Outcome(False, "lost", {}, Scene(tip, np.zeros(len(tip)), layers))
    return rollout(0, outcome=outcome, actions=np.zeros((len(tip) - 1, 4)))


def test_who_climbs_away_went_wrong_at_the_lowest_point():
    turn = turning_point(through(-2.0, -1.0, -0.5, -3.0, -9.0, sideways=0.3))
    assert (turn.tick, turn.time_s, turn.stage) == (2, pytest.approx(0.2), "before the surface")
    assert turn.distance_mm == pytest.approx(np.hypot(2.5, 0.3))
    assert turn.end_depth_mm == pytest.approx(-11.0)
    assert turn.end_lateral_mm == pytest.approx(0.3)


def test_who_runs_through_went_wrong_at_the_stop():
    turn = turning_point(lower(0, steps=30))
    assert (turn.tick, turn.distance_mm) == (20, pytest.approx(0, abs=1e-9))
    assert turn.stage == "past the membrane"
    assert turn.end_depth_mm == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("depth", "stage"),
    [
        (-0.1, "before the surface"),
        (0.0, "past the surface"),
        (2.5, "past the membrane"),
        (9.0, "past the floor"),
    ],
)
def test_a_stage_is_the_last_layer_passed(depth, stage):
    assert stage_of(depth, LAYERS) == stage


def test_without_a_scene_or_a_stop_there_is_none():
    assert turning_point(rollout(0)) is None
    assert turning_point(through(1.0, 2.0, layers={"surface": 0.0})) is None
    assert stage_of(1.0, {}) == "on the way"
