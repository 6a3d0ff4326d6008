"""Changes of poses, by every convention of angles, against scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.lerobot.poses import POSE_SIZES, delta_names, pose_changes


def recorded(turns: Rotation, convention: str) -> np.ndarray:
    if convention == "rotvec":
        return turns.as_rotvec()
    xyzw = turns.as_quat()
    return xyzw if convention == "quat_xyzw" else xyzw[:, [3, 0, 1, 2]]


@pytest.mark.parametrize("convention", ["rotvec", "quat_xyzw", "quat_wxyz"])
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), degrees=st.sampled_from([0.0, 1e-7, 1.0, 60.0, 179.0]))
def test_rotations_become_the_turn_from_each_to_the_next(convention, seed, degrees):
    rng = np.random.default_rng(seed)
    axes = rng.normal(size=(9, 3))
    steps = Rotation.from_rotvec(np.radians(degrees) * axes / np.linalg.norm(axes, axis=1, keepdims=True))
    turns = [Rotation.random(random_state=seed % 2**31)]
    for step in steps:
        turns.append(step * turns[-1])
    poses = np.concatenate(
        [rng.normal(size=(10, 3)), recorded(Rotation.concatenate(turns), convention)], axis=1
    )
    changes = pose_changes(poses, convention, 1000.0)
    assert changes.dtype == np.float32
    np.testing.assert_allclose(changes[:, :3], 1000 * np.diff(poses[:, :3], axis=0), rtol=1e-6)
    # float32 of up to 180 degrees; a rotation vector near half a turn keeps seven digits.
    np.testing.assert_allclose(changes[:, 3:], np.degrees(steps.as_rotvec()), atol=2e-5)
    # Either sign of a quaternion is the same rotation, and its length does not matter.
    if convention != "rotvec":
        other = poses.copy()
        other[::2, 3:] *= -2.5
        np.testing.assert_allclose(pose_changes(other, convention, 1000.0), changes, atol=2e-5)


def test_euler_angles_change_the_short_way_round():
    poses = np.zeros((3, 6))
    poses[:, 3:] = [[179.0, 10.0, -179.5], [-179.0, 12.0, 179.0], [-178.0, 12.0, -179.0]]
    expected = [[2.0, 2.0, -1.5], [1.0, 0.0, 2.0]]
    np.testing.assert_allclose(pose_changes(poses, "euler_deg", 1.0)[:, 3:], expected, atol=1e-5)
    poses[:, 3:] = np.radians(poses[:, 3:])
    np.testing.assert_allclose(pose_changes(poses, "euler_rad", 1.0)[:, 3:], expected, atol=1e-4)
    assert delta_names("euler_rad") == ("dx", "dy", "dz", "da", "db", "dr")
    assert delta_names("rotvec")[3:] == ("drx", "dry", "drz")


def test_what_is_no_pose_is_refused():
    poses = np.ones((4, 7))
    poses[2, 3:] = 0
    with pytest.raises(EpisodeError, match="the quaternion in row 2 is zero"):
        pose_changes(poses, "quat_wxyz", 1.0)
    poses[1, 0] = np.nan
    with pytest.raises(EpisodeError, match="not finite, in row 1"):
        pose_changes(poses, "quat_wxyz", 1.0)
    assert {
        name: pose_changes(np.ones((1, size)), name, 1.0).shape for name, size in POSE_SIZES.items()
    } == dict.fromkeys(POSE_SIZES, (0, 6))
