import numpy as np
import pytest

from vla_jax.dataset import alignment
from vla_jax.recordings.findings import EpisodeError


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


def test_the_reference_shows_whole_chunks_but_the_last():
    assert np.flatnonzero(alignment.begins_chunk(30, 8)).tolist() == [0, 8]
    assert np.flatnonzero(alignment.begins_chunk(33, 16)).tolist() == [0]
    assert not alignment.begins_chunk(7, 8).any()
