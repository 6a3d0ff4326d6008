"""What may reach the arm, whatever the network says."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla_jax.live.observing import Seen
from vla_jax.live.safety import GROSS, SafetyLimits, SafetyMonitor

STILL = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
LOW = np.array([-0.2, -0.2, -0.4, -0.3, -0.3, -0.3, 1], np.float32)
HIGH = np.array([0.2, 0.2, 0.1, 0.3, 0.3, 0.3, 1], np.float32)
POSE = np.array([190.0, 0.0, 60.0, 179.5, 0.0, 0.0])
REACH = np.array([10.0, 10.0, 10.0, 20.0, 20.0, 20.0])
DOWN = np.array([0, 0, -0.2, 0, 0, 0, 1], np.float32)


def limits(**changes):
    values = {
        "low": LOW,
        "high": HIGH,
        "max_change": np.array([0.2, 0.2, 0.4, 0.3, 0.3, 0.3, np.inf], np.float32),
        "pose_low": POSE - REACH,
        "pose_high": POSE + REACH,
        "groups": ((0, 1, 2), (3, 4, 5)),
        "angles": (3, 4, 5),
        "force": (0.0, 4.0),
        "max_age_s": {"state": 0.25, "sensor": 0.25, "features": 2.5},
        "stop_after_s": 5.0,
    }
    return SafetyLimits(**(values | changes))


def seen(moment=100.0, pose=POSE, force=(2.0, 2.1), **ages):
    ages = {"state": 0.02, "sensor": 0.03, "features": 0.6} | ages
    times = {name: moment - age for name, age in ages.items() if age is not None}
    return Seen(moment, pose, None if force is None else np.array(force, np.float32), times)


def decide(monitor, action, moment=100.0, faults=None, **known):
    what = seen(moment, **known)
    return monitor.decide(moment, action, what, monitor.faults(what) if faults is None else faults)


def make_monitor(**changes):
    return SafetyMonitor(limits(**changes), STILL)


def test_what_is_within_all_limits_passes_unchanged():
    decision = decide(make_monitor(), DOWN)
    assert decision.intervention is None
    assert decision.reasons == ()
    np.testing.assert_array_equal(decision.action, DOWN)


@settings(max_examples=60)
@example([np.full(7, 1.7e-44, np.float32)])
@given(
    st.lists(
        arrays(
            np.float32,
            7,
            elements=st.one_of(
                st.floats(-1, 1, width=32), st.sampled_from([math.nan, math.inf, -math.inf, 1e30])
            ),
        ),
        max_size=12,
    )
)
def test_nothing_faster_rougher_or_further_than_the_limits_ever_comes_out(actions):
    monitor, previous, pose = make_monitor(), STILL, POSE.copy()
    for i, action in enumerate(actions):
        decision = decide(monitor, action, 100.0 + 0.1 * i, pose=pose)
        out = decision.action
        assert np.isfinite(out).all()
        if decision.intervention in ("hold", "stop"):
            np.testing.assert_array_equal(out, STILL)
        else:
            assert (out >= LOW).all()
            assert (out <= HIGH).all()
            faster = np.abs(out) > np.abs(previous)
            change = np.abs(out - previous)
            assert (change[faster] <= limits().max_change[faster] * 2 + 1e-6).all()
            # Each axis goes where it was asked to, or less far.
            assert (np.abs(out) <= np.abs(action) + 1e-6)[:6].all()
            assert (out * action >= 0)[:6].all()
            if decision.intervention is None:
                np.testing.assert_array_equal(out, action)
            pose = pose + out[:6]
            assert (np.abs(pose - POSE) <= REACH + 1e-6).all()
        previous = out


def test_speed_is_cut_along_the_way_and_what_is_far_beyond_is_refused():
    monitor = make_monitor(max_change=np.full(7, np.inf, np.float32))
    decision = decide(monitor, np.array([0.4, 0.1, -0.2, 0, 0.1, 0, 1], np.float32))
    assert (decision.intervention, decision.reasons) == ("limit", ("speed",))
    np.testing.assert_allclose(decision.action, [0.2, 0.05, -0.1, 0, 0.1, 0, 1], rtol=1e-6)
    # Upwards the demonstrations went less far; what goes there is cut by itself, the rest of the motion stays.
    upwards = decide(monitor, np.array([0.1, 0, 0.2, 0, 0, 0, 1], np.float32)).action
    np.testing.assert_allclose(upwards, [0.1, 0, 0.1, 0, 0, 0, 1], rtol=1e-6)
    decision = decide(monitor, np.array([GROSS * 0.2 + 0.01, 0, 0, 0, 0, 0, 1], np.float32))
    assert (decision.intervention, decision.reasons) == ("hold", ("speed far beyond its limit",))


def test_acceleration_is_cut_along_the_way():
    monitor = make_monitor(max_change=np.full(7, 0.05, np.float32))
    begun = decide(monitor, np.array([0.2, -0.1, 0, 0, 0.04, 0, 1], np.float32))
    assert begun.reasons == ("acceleration",)
    np.testing.assert_allclose(begun.action, [0.05, -0.025, 0, 0, 0.04, 0, 1], rtol=1e-6)
    # Turned back: what goes the other way stops at once, and only then begins.
    turned = decide(monitor, np.array([-0.2, -0.1, 0, 0, 0.04, 0, 1], np.float32))
    np.testing.assert_allclose(turned.action, [0, -0.025, 0, 0, 0.04, 0, 1], atol=1e-7)


def test_at_the_edge_of_the_workspace_the_way_ends_and_the_arm_is_not_held():
    monitor = make_monitor()
    action = np.array([0.1, 0, -0.2, 0, 0, 0.1, 1], np.float32)
    decision = decide(monitor, action, pose=POSE - [0, 0, 9.9, 0, 0, 0])
    assert (decision.intervention, decision.reasons) == ("limit", ("workspace",))
    np.testing.assert_allclose(decision.action, [0.05, 0, -0.1, 0, 0, 0.1, 1], rtol=1e-5)
    there = decide(monitor, action, pose=POSE - [0, 0, 10, 0, 0, 0])
    assert there.intervention == "limit"
    np.testing.assert_array_equal(there.action, np.array([0, 0, 0, 0, 0, 0.1, 1], np.float32))
    assert not monitor.is_holding
    turned = decide(make_monitor(), action, pose=np.add(POSE, [0, 0, 0, 0, 0, 19.95]))
    np.testing.assert_allclose(turned.action, [0.1, 0, -0.2, 0, 0, 0.05, 1], rtol=1e-5)


def test_acceleration_is_cut_but_never_braking():
    monitor = make_monitor(max_change=np.full(7, 0.05, np.float32))
    steps = [decide(monitor, DOWN).action[2] for _ in range(5)]
    np.testing.assert_allclose(steps, [-0.05, -0.1, -0.15, -0.2, -0.2], atol=1e-6)
    assert decide(monitor, STILL).action[2] == 0
    decide(monitor, DOWN)
    turned = decide(monitor, np.array([0, 0, 0.1, 0, 0, 0, 1], np.float32))
    assert turned.action[2] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({"state": 0.26}, "state too old"),
        ({"state": None}, "no state"),
        ({"sensor": 0.3}, "sensor too old"),
        ({"features": None}, "no features"),
        ({"features": 2.6}, "features too old"),
        ({"force": (2.0, 4.1)}, "force"),
        ({"force": (-0.1, 2.0)}, "force"),
        ({"force": (2.0, math.nan)}, "force"),
        ({"pose": POSE - [0, 0, 10.1, 0, 0, 0]}, "workspace"),
        ({"pose": None}, "no state"),
    ],
)
def test_each_violation_holds_and_its_end_lets_go(known, reason):
    monitor = make_monitor()
    decide(monitor, DOWN)
    decision = decide(monitor, DOWN, 100.1, **known)
    assert (decision.intervention, decision.reasons) == ("hold", (reason,))
    np.testing.assert_array_equal(decision.action, STILL)
    assert monitor.is_holding
    assert decide(monitor, DOWN, 100.2).intervention is None
    assert not monitor.is_holding


def test_an_arm_outside_its_workspace_may_come_back_in():
    monitor, outside = make_monitor(), POSE - [0, 0, 11, 0, 0, 0]
    assert decide(monitor, DOWN, pose=outside).reasons == ("workspace",)
    back = np.array([0, 0, 0.1, 0, 0, 0, 1], np.float32)
    assert decide(monitor, back, pose=outside).intervention is None
    # Not by the other axes, which would carry it along outside.
    assert decide(monitor, STILL, pose=outside).intervention == "hold"
    turned_too_far = np.add(POSE, [0, 0, 0, 20.5, 0, 0])
    assert decide(monitor, np.array([0, 0, 0, 0.1, 0, 0, 1], np.float32), pose=turned_too_far).reasons == (
        "workspace",
    )
    turned_back = np.array([0, 0, 0, -0.1, 0, 0, 1], np.float32)
    assert decide(monitor, turned_back, pose=turned_too_far).intervention is None


def test_an_angle_is_compared_by_the_shorter_way_round():
    turned = np.array([0, 0, 0, 0.3, 0, 0, 1], np.float32)
    assert decide(make_monitor(), turned, pose=np.add(POSE, [0, 0, 0, -359.5, 0, 0])).intervention is None
    assert decide(make_monitor(), turned, pose=np.add(POSE, [0, 0, 0, -339.9, 0, 0])).reasons == (
        "workspace",
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_command_on_numbers_that_are_none(bad):
    action = DOWN.copy()
    action[4] = bad
    assert decide(make_monitor(), action).reasons == ("action not finite",)
    assert decide(make_monitor(), None).reasons == ("no action",)


def test_a_hold_that_lasts_becomes_a_stop_and_that_is_final():
    monitor = make_monitor()
    for i in range(50):
        assert decide(monitor, DOWN, 100 + 0.1 * i, state=1.0).intervention == "hold"
    stopped = decide(monitor, DOWN, 105.01, state=1.0)
    assert stopped.intervention == "stop"
    assert stopped.reasons == ("held for 5 s: state too old",)
    assert decide(monitor, DOWN, 106).intervention == "stop"
    assert monitor.hold(107, "other").intervention == "stop"
    assert monitor.is_stopped


def test_a_hold_that_ends_is_not_counted_on():
    monitor = make_monitor()
    for i in range(200):
        is_bad = i % 20 < 19
        decision = decide(monitor, DOWN, 100 + 0.1 * i, state=1.0 if is_bad else 0.02)
        assert decision.intervention == ("hold" if is_bad else None)


def test_a_hold_between_ticks_counts_from_then():
    monitor = make_monitor()
    assert monitor.hold(100.05, "pictures too old").reasons == ("pictures too old",)
    assert monitor.is_holding
    assert decide(monitor, DOWN, 105.04, state=1.0).intervention == "hold"
    assert decide(monitor, DOWN, 105.06, state=1.0).intervention == "stop"
