"""The arm's last states: those of the episode up to the tick, the same for `prepare` and a robot's buffer."""

import numpy as np
import pytest

from tests.vla_jax.recordings.recorded_episodes import write_windows_episode
from vla_jax.contracts.specs import StateWindow
from vla_jax.dataset.preparation import PrepareOptions, prepare
from vla_jax.errors import UserError
from vla_jax.live.buffers import RowBuffer
from vla_jax.recordings.windows import WindowsReader
from vla_jax.timing import past_moments


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("windows")
    for i in range(3):
        write_windows_episode(root / "Task" / f"e{i}", seed=i, seconds=2.0, has_sensor=False)
    return root


@pytest.fixture(scope="module")
def dataset(source, tmp_path_factory):
    return prepare([str(source)], tmp_path_factory.mktemp("data") / "data", PrepareOptions()).dataset


@pytest.mark.parametrize("window", [StateWindow(4), StateWindow(3, 5)])
def test_windows_are_the_poses_of_earlier_ticks_of_the_episode(dataset, window):
    ticks = np.arange(len(dataset.ticks))
    states, there = dataset.state_windows(ticks, window)
    assert (states.shape, states.dtype) == ((len(ticks), window.rows, 6), np.float32)
    for tick in ticks.tolist():
        episode = dataset.episodes[dataset.ticks.episode[tick]]
        for row in range(window.rows):
            past = tick - window.every * (window.rows - 1 - row)
            is_there = past >= episode.tick_start
            assert there[tick, row] == is_there
            expected = dataset.ticks.pose[past if is_there else tick]
            np.testing.assert_array_equal(states[tick, row], expected.astype(np.float32))


def test_a_robot_s_buffer_gives_what_prepare_packed(dataset, source):
    """The recorded poses, at 100 Hz, as they come; those of before the episode are none of its own."""
    window = StateWindow(6, 2)
    for entry in dataset.episodes:
        recording = WindowsReader().read(source / "Task" / entry.name, None)
        buffer = RowBuffer(1000, 6, np.float64)
        offset, began = -3.0, recording.times[0]
        earlier = began - np.arange(20, 0, -1) / 100
        buffer.add(earlier, np.full((20, 6), 7.0), earlier[-1], offset, 0)
        ticks = np.arange(entry.tick_start, entry.tick_stop)
        states, there = dataset.state_windows(ticks, window)
        fed = 0
        for tick, expected, expected_there in zip(ticks.tolist(), states, there, strict=True):
            moment = dataset.ticks.time[tick]
            upto = int(np.searchsorted(recording.times, moment + 1e-5, side="right"))
            for row in range(fed, upto):
                buffer.add(recording.times[row : row + 1], recording.state[row : row + 1], moment, offset, 0)
            fed = upto
            found = np.tile(recording.state[upto - 1], (window.rows, 1))
            seen = buffer.newest_at(past_moments(moment, window.rows, 0.2), began, found)
            np.testing.assert_array_equal(seen, expected_there)
            np.testing.assert_array_equal(found.astype(np.float32), expected)


def test_a_window_of_one_is_none():
    with pytest.raises(UserError, match="rows is 1; it must be"):
        StateWindow(1)
