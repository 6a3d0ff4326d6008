import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_jax.dataset import alignment
from vla_jax.recordings.recording import EpisodeError

FLOATS = st.floats(0, 100, allow_nan=False)


@given(hnp.arrays(float, st.integers(1, 30), elements=FLOATS, unique=True), st.lists(FLOATS, min_size=1))
def test_never_takes_later_data(times, moments):
    times, moments = np.sort(times), np.array(moments)
    index = alignment.newest_at_or_before(times, moments)
    for moment, i in zip(moments, index, strict=True):
        assert i < 0 or times[i] <= moment + alignment.TIME_RESOLUTION
        assert i == len(times) - 1 or times[i + 1] > moment


@given(st.floats(-1e4, 1e4))
def test_wraps_into_half_open_range(angle):
    wrapped = alignment.wrap_degrees(np.array(angle))
    assert -180 < wrapped <= 180
    turns = (angle - wrapped) / 360
    assert turns == pytest.approx(round(turns), abs=1e-9)


def test_wraps_exactly_at_the_seam():
    np.testing.assert_array_equal(
        alignment.wrap_degrees(np.array([180.0, -180.0, 190.0, -190.0])), [180, 180, -170, 170]
    )


def test_deltas_wrap_angles_and_not_positions():
    poses = np.array([[0, 0, 0, 179.0, 0, 0], [200, 0, 0, -179.0, 0, 0]])
    np.testing.assert_allclose(alignment.pose_deltas(poses), [[200, 0, 0, 2, 0, 0, 1]])


def test_grid_takes_newest_pose_at_100_hz():
    times = 1e9 + np.arange(101) / 100
    ticks, rows = alignment.control_ticks(times, 10)
    np.testing.assert_array_equal(rows, np.arange(0, 101, 10))
    np.testing.assert_allclose(ticks, times[rows], atol=1e-6)


def test_poses_at_the_action_rate_are_the_ticks_despite_jitter():
    times = 1e9 + np.arange(30) / 10 + np.random.default_rng(0).uniform(-0.03, 0.03, 30)
    ticks, rows = alignment.control_ticks(times, 10)
    np.testing.assert_array_equal(rows, np.arange(30))
    np.testing.assert_array_equal(ticks, times)


def test_slow_poses_name_the_rate_to_use():
    with pytest.raises(EpisodeError, match=r"--action-hz 5$"):
        alignment.control_ticks(1e9 + np.arange(20) / 5, 10)


def test_gap_in_poses_is_a_fault():
    times = np.concatenate([np.arange(100), 180 + np.arange(100)]) / 100
    with pytest.raises(EpisodeError, match=r"stop for 0.81 s after row 100"):
        alignment.control_ticks(times, 10)


def test_uneven_rates_are_noted():
    assert alignment.uneven_rate_notes(np.arange(30) / 15, 10)
    assert not alignment.uneven_rate_notes(np.arange(30) / 20, 10)
    assert not alignment.uneven_rate_notes(np.arange(300) / 100, 10)


def test_angle_jump_is_a_fault_and_the_seam_is_not():
    times, poses = np.arange(5) / 100, np.zeros((5, 6))
    poses[:, 5] = [179, 179.5, -179.8, -179, -178]
    alignment.check_angle_jumps(times, poses)
    poses[3, 4] = 40
    with pytest.raises(EpisodeError, match=r"pose_b jumps by 40.0 degrees between rows 3 and 4"):
        alignment.check_angle_jumps(times, poses)


@given(st.integers(1, 20), st.integers(1, 8), st.data())
def test_chunks_repeat_the_last_delta(length, horizon, data):
    tick = data.draw(st.integers(0, length - 1))
    rows = alignment.chunk_rows(np.array([tick]), np.array([length - 1]), horizon)[0]
    assert rows.tolist() == [min(tick + j, length - 1) for j in range(horizon)]


@given(
    st.lists(st.lists(FLOATS, min_size=1, max_size=10), min_size=1, max_size=4), st.lists(FLOATS, min_size=1)
)
def test_sensor_rows_are_never_later_and_stay_within_a_stretch(stretches, ticks):
    stretches = [np.sort(stretch) for stretch in stretches]
    times, ticks = np.concatenate(stretches), np.array(ticks)
    starts = np.cumsum([0, *map(len, stretches)])[:-1].tolist()
    begin, end = alignment.newest_sensor_rows(ticks, times, starts, max_age=5.0)
    for tick, b, e in zip(ticks, begin, end, strict=True):
        usable = times[(times <= tick + alignment.TIME_RESOLUTION) & (tick - times <= 5.0)]
        if e < 0:
            assert b == -1
            assert not len(usable)
        else:
            assert b in starts
            assert times[e - 1] == usable.max()
            assert not [s for s in starts if b < s < e]
