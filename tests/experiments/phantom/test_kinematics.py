"""The arm's joint angles, checked against its Denavit-Hartenberg model."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from experiments.phantom.kinematics import NEEDLE_REACH_MM, joint_angles, rotation_matrix

# Modified Denavit-Hartenberg rows of the Meca500: twist [rad], length [mm], offset [mm], joint zero [rad].
MECA500 = [
    (0.0, 0.0, 135.0, 0.0),
    (-np.pi / 2, 0.0, 0.0, -np.pi / 2),
    (0.0, 135.0, 0.0, 0.0),
    (-np.pi / 2, 38.0, 120.0, 0.0),
    (np.pi / 2, 0.0, 0.0, 0.0),
    (-np.pi / 2, 0.0, 70.0, np.pi),
]


def flange(joints_deg):
    transform = np.eye(4)
    for (twist, length, offset, zero), joint in zip(MECA500, np.radians(joints_deg), strict=True):
        ct, st_, ca, sa = np.cos(joint + zero), np.sin(joint + zero), np.cos(twist), np.sin(twist)
        transform = transform @ np.array(
            [
                [ct, -st_, 0, length],
                [st_ * ca, ct * ca, -sa, -offset * sa],
                [st_ * sa, ct * sa, ca, offset * ca],
                [0, 0, 0, 1],
            ]
        )
    return transform


def test_the_model_is_the_robot_that_its_manual_describes():
    zero = flange(np.zeros(6))
    np.testing.assert_allclose(zero[:3, 3], [190, 0, 308], atol=1e-9)
    np.testing.assert_allclose(zero[:3, :3], rotation_matrix(np.array([0.0, 90.0, 0.0])), atol=1e-9)


@given(
    st.tuples(st.floats(150, 200), st.floats(-20, 20), st.floats(40, 80)),
    st.tuples(st.floats(-12, 12), st.floats(-12, 12), st.floats(-40, 40)),
)
def test_joint_angles_bring_the_tip_to_the_pose(position, angles):
    pose = np.array([*position, *angles])
    reached = flange(joint_angles(pose))
    tip = reached[:3, 3] + NEEDLE_REACH_MM * reached[:3, 2]
    np.testing.assert_allclose(tip, position, atol=1e-6)
    # The tool's z axis points back along the needle: half a turn about y from the flange's frame.
    tool = reached[:3, :3] @ np.diag([-1.0, 1.0, -1.0])
    np.testing.assert_allclose(tool, rotation_matrix(pose[3:]), atol=1e-9)


def test_joint_angles_are_the_robots_own():
    """Of the arm's several solutions the one with the elbow up, within the limits of the Meca500's joints."""
    for x in (170.0, 200.0):
        joints = joint_angles(np.array([x, 5.0, 60.0, 4.0, -4.0, 8.0]))
        assert (joints > [-175, -70, -135, -170, -115, -180]).all()
        assert (joints < [175, 90, 70, 170, 115, 180]).all()
        assert joints[1] < 45  # with the elbow down the upper arm would point below the wrist


def test_many_poses_at_once_equal_one_at_a_time_and_out_of_reach_is_nan():
    poses = np.array([[190.0, 1.0, 60.0, 1.0, 2.0, 3.0], [180.0, -5.0, 70.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(joint_angles(poses), [joint_angles(pose) for pose in poses])
    assert np.isnan(joint_angles(np.array([900.0, 0, 60, 0, 0, 0]))).any()


def test_rotation_is_about_mobile_x_then_y_then_z():
    np.testing.assert_allclose(rotation_matrix(np.array([90.0, 0, 0])) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    a, b, r = 20.0, -30.0, 40.0
    product = (
        rotation_matrix(np.array([a, 0, 0]))
        @ rotation_matrix(np.array([0, b, 0]))
        @ rotation_matrix(np.array([0, 0, r]))
    )
    np.testing.assert_allclose(rotation_matrix(np.array([a, b, r])), product, atol=1e-12)
