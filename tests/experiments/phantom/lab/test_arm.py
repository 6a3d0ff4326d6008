"""The robot's program: a function of commands and their times."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.phantom.lab.arm import Arm, ArmRules
from vla_jax.live.wire import MoveBy, MoveTo, Start, Stop

HERE = np.zeros(6)
RULES = ArmRules(max_speed=1.0, max_turn=1.0)


def move(x: float) -> MoveBy:
    return MoveBy((x, 0.0, 0.0, 0.0, 0.0, 0.0))


def steps(arm: Arm, first: int, count: int) -> list[float]:
    """Returns how far the arm moves along x in steps of 0.1 s."""
    return [float(arm.advance(0.1 * k, HERE)[0]) for k in range(first, first + count)]


def test_without_commands_it_stands_still():
    assert steps(Arm(RULES), 0, 100) == [0.0] * 100


def test_a_command_is_executed_in_the_step_after_it():
    arm = Arm(RULES)
    arm.receive(move(0.05), 0.13)
    assert steps(arm, 1, 2) == pytest.approx([0.0, 0.05])


def test_commands_add_up_until_a_step_begins():
    arm = Arm(RULES)
    arm.receive(move(0.02), 0.01)
    arm.receive(move(0.03), 0.09)
    arm.receive(move(0.01), 0.15)
    assert steps(arm, 1, 2) == pytest.approx([0.05, 0.01])


def test_speeds_are_clamped_axis_by_axis():
    arm = Arm(ArmRules(max_speed=2.0, max_turn=5.0))
    arm.receive(MoveBy((1.0, -1.0, 0.1, 1.0, -1.0, 0.3)), 0.0)
    np.testing.assert_allclose(arm.advance(0.0, HERE), [0.2, -0.2, 0.1, 0.5, -0.5, 0.3])
    assert arm.counts["clamped"] == 1


def test_a_velocity_expires_0_4_s_after_the_last_command():
    arm = Arm(RULES)
    arm.receive(move(0.05), 0.05)
    # In force from 0.1 to 0.45: half of the step at 0.4.
    assert steps(arm, 1, 6) == pytest.approx([0.05, 0.05, 0.05, 0.025, 0.0, 0.0])
    assert arm.counts["expired"] == 1
    assert arm.counts["steps_without"] == 3
    arm.receive(move(0.05), 0.68)
    assert steps(arm, 7, 1) == pytest.approx([0.05])


def test_stop_holds_until_start():
    arm = Arm(RULES)
    arm.receive(move(0.05), 0.0)
    arm.receive(Stop(), 0.15)
    arm.receive(move(0.05), 0.16)
    assert steps(arm, 0, 4) == pytest.approx([0.05, 0.05, 0.0, 0.0])
    assert arm.counts["refused"] == 1
    arm.receive(Start(joints=(0.0,) * 6), 0.45)
    arm.receive(move(0.05), 0.46)
    assert steps(arm, 5, 1) == pytest.approx([0.05])


def test_the_watchdog_stops_it_until_start():
    arm = Arm(RULES)
    arm.receive(move(0.05), 0.0)
    steps(arm, 0, 51)
    assert arm.counts["watchdog"] == 1
    arm.receive(move(0.05), 5.15)
    assert steps(arm, 52, 1) == [0.0]
    arm.receive(Start(joints=(0.0,) * 6), 5.25)
    arm.receive(move(0.05), 5.26)
    assert steps(arm, 53, 1) == pytest.approx([0.05])
    assert arm.counts["watchdog"] == 1


def test_it_goes_to_a_pose_at_its_largest_speed_and_a_movement_ends_that():
    arm = Arm(RULES)
    arm.receive(MoveTo((0.25, 0, 0, 0, 0, -0.05)), 0.0)
    pose = np.zeros(6)
    for k in range(4):
        pose += arm.advance(0.1 * k, pose)
    np.testing.assert_allclose(pose, [0.25, 0, 0, 0, 0, -0.05])
    arm.receive(MoveTo((9.0, 0, 0, 0, 0, 0)), 0.4)
    arm.receive(move(-0.02), 0.45)
    assert steps(arm, 5, 1) == pytest.approx([-0.02])


def test_an_episode_begins_with_nothing_said():
    arm = Arm(RULES)
    arm.receive(Stop(), 0.0)
    arm.receive(move(0.05), 0.0)
    steps(arm, 0, 1)
    arm.begin()
    assert steps(arm, 1, 1) == [0.0]
    arm.receive(move(0.05), 0.15)
    assert steps(arm, 2, 1) == pytest.approx([0.05])


@given(
    st.lists(
        st.tuples(
            st.floats(0, 4),
            st.one_of(
                st.just(Stop()),
                st.just(Start(joints=(0.0,) * 6)),
                st.lists(st.floats(-1e4, 1e4), min_size=6, max_size=6).map(lambda d: MoveBy(tuple(d))),
                st.lists(st.floats(-1e4, 1e4), min_size=6, max_size=6).map(lambda d: MoveTo(tuple(d))),
            ),
        ),
        max_size=20,
    )
)
def test_whatever_is_said_it_is_never_faster_than_allowed(said):
    arm = Arm(RULES)
    for moment, command in sorted(said, key=lambda entry: entry[0]):
        arm.receive(command, moment)
    pose, last = np.zeros(6), np.zeros(6)
    for k in range(100):
        last = arm.advance(0.1 * k, pose)
        assert (np.abs(last) <= 0.1 + 1e-9).all()
        pose += last
    if not any(isinstance(command, MoveTo) for _, command in said):
        assert not last.any()
