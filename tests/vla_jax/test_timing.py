import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_jax import timing

FLOATS = st.floats(0, 100, allow_nan=False)


@given(hnp.arrays(float, st.integers(1, 30), elements=FLOATS, unique=True), st.lists(FLOATS, min_size=1))
def test_never_takes_later_data(times, moments):
    times, moments = np.sort(times), np.array(moments)
    index = timing.newest_at_or_before(times, moments)
    for moment, i in zip(moments, index, strict=True):
        assert i < 0 or times[i] <= moment + timing.TIME_RESOLUTION
        assert i == len(times) - 1 or times[i + 1] > moment


@given(st.integers(1, 20), st.integers(1, 8), st.data())
def test_chunks_repeat_the_last_delta(length, horizon, data):
    tick = data.draw(st.integers(0, length - 1))
    rows = timing.chunk_rows(np.array([tick]), np.array([length - 1]), horizon)[0]
    assert rows.tolist() == [min(tick + j, length - 1) for j in range(horizon)]


@given(
    st.lists(st.lists(FLOATS, min_size=1, max_size=10), min_size=1, max_size=4), st.lists(FLOATS, min_size=1)
)
def test_sensor_rows_are_never_later_and_stay_within_a_stretch(stretches, ticks):
    stretches = [np.sort(stretch) for stretch in stretches]
    times, ticks = np.concatenate(stretches), np.array(ticks)
    starts = np.cumsum([0, *map(len, stretches)])[:-1].tolist()
    begin, end = timing.newest_rows(ticks, times, starts, max_age=5.0)
    for tick, b, e in zip(ticks, begin, end, strict=True):
        usable = times[(times <= tick + timing.TIME_RESOLUTION) & (tick - times <= 5.0)]
        if e < 0:
            assert b == -1
            assert not len(usable)
        else:
            assert b in starts
            assert times[e - 1] == usable.max()
            assert not [s for s in starts if b < s < e]


@given(st.integers(0, 50), st.integers(1, 50), st.integers(1, 60))
def test_windows_end_with_the_newest_row_and_repeat_the_first(begin, length, size):
    end = begin + length
    (rows,) = timing.window_rows(np.array([begin]), np.array([end]), size)
    assert rows.tolist() == [max(begin, end - size + i) for i in range(size)]
    assert timing.is_whole_window(np.array([begin]), np.array([end]), size)[0] == (length >= size)


def test_windows_without_rows_are_all_none():
    none = np.array([-1])
    assert timing.window_rows(none, none, 3).tolist() == [[-1, -1, -1]]
    assert not timing.is_whole_window(none, none, 1)[0]


def test_features_are_refreshed_every_few_ticks():
    assert timing.refresh_ticks(7, 3).tolist() == [0, 0, 0, 3, 3, 3, 6]
    assert timing.refresh_ticks(3, 1).tolist() == [0, 1, 2]


def test_ages_of_what_is_absent_are_not_numbers():
    moments, times = np.array([10.0, 11.0]), np.array([[9.5, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(timing.ages(moments, times), [[0.5, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(timing.ages(moments, times[:, 0]), [0.5, np.nan])
    np.testing.assert_array_equal(timing.oldest(timing.ages(moments, times)), [0.5, np.nan])
    np.testing.assert_array_equal(timing.spread(np.array([[3.0, 1.0, np.nan], [np.nan] * 3])), [2, np.nan])
    np.testing.assert_array_equal(
        timing.newest_row_times(np.array([5.0, 6.0]), np.array([2, -1])), [6, np.nan]
    )


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 9), st.integers(1, 4))
def test_past_rows_are_evenly_apart_and_of_the_episode(first, ahead, size, every):
    (rows,) = timing.past_rows(np.array([first + ahead]), np.array([first]), size, every)
    expected = [first + ahead - every * back for back in range(size)][::-1]
    assert rows.tolist() == [row if row >= first else -1 for row in expected]


def test_past_moments_end_with_the_moment():
    np.testing.assert_allclose(timing.past_moments(5.0, 4, 0.5), [3.5, 4.0, 4.5, 5.0])
