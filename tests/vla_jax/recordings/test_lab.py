import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_jax.recordings import lab
from vla_jax.recordings.findings import EpisodeError


@given(st.floats(-1e4, 1e4))
def test_wraps_into_half_open_range(angle):
    wrapped = lab.wrap_degrees(np.array(angle))
    assert -180 < wrapped <= 180
    turns = (angle - wrapped) / 360
    assert turns == pytest.approx(round(turns), abs=1e-9)


def test_wraps_exactly_at_the_seam():
    np.testing.assert_array_equal(
        lab.wrap_degrees(np.array([180.0, -180.0, 190.0, -190.0])), [180, 180, -170, 170]
    )


def test_deltas_wrap_angles_and_not_positions():
    poses = np.array([[0, 0, 0, 179.0, 0, 0], [200, 0, 0, -179.0, 0, 0]])
    np.testing.assert_allclose(lab.pose_deltas(poses), [[200, 0, 0, 2, 0, 0, 1]])


def test_angle_jump_is_a_fault_and_the_seam_is_not():
    times, poses = np.arange(5) / 100, np.zeros((5, 6))
    poses[:, 5] = [179, 179.5, -179.8, -179, -178]
    lab.check_angle_jumps(times, poses)
    poses[3, 4] = 40
    with pytest.raises(EpisodeError, match=r"pose_b jumps by 40.0 degrees between rows 3 and 4"):
        lab.check_angle_jumps(times, poses)
