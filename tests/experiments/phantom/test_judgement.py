"""The rules of success, on hand-made paths."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from experiments.phantom.judgement import InsertionTrace, judge

STOP = 6.0


def trace(depths, lateral=0.0, forces=None):
    """A path straight down, `lateral` mm beside the marker."""
    depths = np.asarray(depths, float)
    tip = np.stack([np.broadcast_to(lateral, depths.shape), np.zeros_like(depths), depths], axis=1)
    return InsertionTrace(
        tip, tip, np.zeros(len(depths)) if forces is None else np.asarray(forces), STOP, 0.1
    )


def path(*stations, hold=1.0):
    """From one depth to the next at 1 mm/s, and `hold` seconds at the last one."""
    pieces = [np.linspace(a, b, round(abs(b - a) * 10) + 1)[1:] for a, b in itertools.pairwise(stations)]
    return np.concatenate([[stations[0]], *pieces, np.full(round(10 * hold), stations[-1])])


def test_success_and_its_measures():
    depths = path(-5.0, 6.1)
    outcome = judge(trace(depths, 0.3, np.linspace(0, 0.4, len(depths))))
    assert outcome.success
    assert outcome.failure is None
    assert outcome.measures["depth_error_um"] == pytest.approx(100)
    assert outcome.measures["overshoot_um"] == pytest.approx(100)
    assert outcome.measures["lateral_um"] == pytest.approx(300)
    assert outcome.measures["peak_force_n"] == pytest.approx(0.4)
    assert outcome.measures["time_s"] == pytest.approx((len(depths) - 1) * 0.1)


@pytest.mark.parametrize(
    ("depths", "lateral", "failure"),
    [
        (path(-5.0, -0.1), 0.0, "never_entered"),
        (path(-5.0, 6.0), 0.51, "off_marker"),
        (path(-5.0, 6.0), 0.49, None),
        (path(-5.0, 6.6, 6.0), 0.0, "too_deep"),
        (path(-5.0, 6.4, 6.0), 0.0, None),
        (path(-5.0, 5.7), 0.0, "stopped_short"),
        (path(-5.0, 5.85), 0.0, None),
        (path(-5.0, 6.3), 0.0, "stopped_past"),
        (path(-5.0, 6.15), 0.0, None),
        (path(-5.0, 6.0, hold=0.8), 0.0, "did_not_stop"),
        (path(-5.0, 6.0, 5.0, 6.0, 5.0, 6.0, hold=0.0), 0.0, "did_not_stop"),
    ],
)
def test_the_first_broken_rule_names_the_failure(depths, lateral, failure):
    outcome = judge(trace(depths, lateral))
    assert outcome.failure == failure
    assert outcome.success == (failure is None)


@pytest.mark.parametrize(
    ("depths", "stopped"),
    [(path(-5.0, 6.0), True), (path(-5.0, 6.0, hold=0.8), False), (path(-5.0, -0.5), False)],
)
def test_stopped_is_still_in_the_tissue(depths, stopped):
    assert judge(trace(depths)).measures["stopped"] is stopped


def test_a_trembling_needle_has_not_stopped():
    still = path(-5.0, 6.0)
    for amplitude, failure in ((0.04, None), (0.15, "did_not_stop")):
        depths = still.copy()
        depths[-12::2] += amplitude
        assert judge(trace(depths)).failure == failure


def test_moving_sideways_is_not_standing_still():
    depths = path(-5.0, 6.0)
    lateral = np.zeros(len(depths))
    lateral[-10:] = np.linspace(0.02, 0.2, 10)
    assert judge(trace(depths, lateral)).failure == "did_not_stop"


def test_where_it_enters_is_found_between_ticks():
    tip = np.array([[1.0, 0.0, -0.3], [0.2, 0.0, 0.1], [0.0, 0.0, 1.0]])
    outcome = judge(InsertionTrace(tip, tip, np.zeros(3), STOP, 0.1))
    assert outcome.measures["lateral_um"] == pytest.approx(400)


def test_one_entry_beside_the_marker_counts_whatever_follows():
    depths = path(-1.0, 0.5, -1.0, 6.0)
    lateral = np.where(np.arange(len(depths)) < 20, 0.8, 0.1)
    outcome = judge(trace(depths, lateral))
    assert outcome.failure == "off_marker"
    assert outcome.measures["lateral_um"] == pytest.approx(800)


def test_what_never_entered_has_no_depth():
    measures = judge(trace([-5.0, -5.0])).measures
    assert measures["depth_error_um"] is measures["overshoot_um"] is measures["lateral_um"] is None
    assert measures["jerk"] is None
    assert measures["time_s"] == pytest.approx(0.1)


def test_jerk_is_the_third_derivative():
    time = np.arange(30) / 10
    assert judge(trace(0.5 * time**3 - 2)).measures["jerk"] == pytest.approx(3.0)
    assert judge(trace(2 * time**2 - 2)).measures["jerk"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("sideways", [0.0, 0.3])
@pytest.mark.parametrize(("wander", "stops"), [(0.08, True), (0.25, False)])
def test_tissue_that_passes_by_sideways_leaves_a_needle_that_keeps_its_depth_stopped(sideways, wander, stops):
    still = trace(path(-5.0, 6.0))
    breath = np.sin(np.arange(len(still.tip_mm)) * 0.1 * 2 * np.pi * 0.25)
    tip, arm = still.tip_mm.copy(), still.arm_mm.copy()
    arm[:, 2] = breath - tip[:, 2]
    tip[:, 0] -= sideways * breath
    tip[-5, 2] += wander
    outcome = judge(replace(still, tip_mm=tip, arm_mm=arm))
    assert outcome.measures["stopped"] == stops


def test_a_needle_that_itself_moves_sideways_has_not_stopped():
    still = trace(path(-5.0, 6.0))
    tip = still.tip_mm.copy()
    tip[-5, 0] += 0.25
    assert judge(replace(still, tip_mm=tip, arm_mm=tip)).failure == "did_not_stop"
