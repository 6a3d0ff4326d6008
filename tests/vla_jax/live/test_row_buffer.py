"""Rows and pictures as they come, and what of them a moment sees: the same as `prepare` of the same rows."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.dataset.sensor_stream import MAX_ROW_GAP_SECONDS
from vla_jax.live.buffers import PictureBuffer, RowBuffer
from vla_jax.live.streams import Picture
from vla_jax.timing import newest_rows, window_rows

BASE, HZ, OFFSET = 1.7e9, 650.0, -3.0
WINDOW = 65


def rows_of(numbers):
    return np.stack([numbers, 2.0 * np.asarray(numbers)], axis=1).astype(np.float32)


def add(buffer, numbers, *, offset=OFFSET, epoch=0, times=None):
    numbers = np.asarray(numbers)
    times = BASE + numbers / HZ if times is None else times
    buffer.add(times, rows_of(numbers), times[-1], offset, epoch)


def make_buffer(capacity=200):
    return RowBuffer(capacity, 2, np.float32, 1 / HZ)


def window(buffer, moment, max_age=1.0, rows=WINDOW):
    found = np.zeros((rows, 2), np.float32)
    return buffer.window(moment, max_age, found), found


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 15), min_size=1, max_size=60),
    st.randoms(use_true_random=False),
    st.floats(0, 0.3),
)
def test_lost_doubled_and_reordered_batches_leave_the_rows_in_order(sizes, random, ahead):
    """Against `timing` of all rows that arrived, as a recording of them would be read."""
    edges = np.cumsum([0, *sizes])
    batches = [np.arange(a, b) for a, b in itertools.pairwise(edges)]
    batches = [batch for batch in batches if random.random() > 0.1]
    batches += [batch for batch in batches if random.random() < 0.1]
    batches.sort(key=lambda batch: batch[0] + random.choice((0, 0, 0, 30)))
    buffer = make_buffer(2000)
    # A first one that nothing is older than: what comes before the oldest row is too late.
    add(buffer, [-1])
    for batch in batches:
        add(buffer, batch)
    kept = np.unique(np.concatenate([[-1], *batches]))
    moment = BASE + edges[-1] / HZ - ahead
    begin, end = newest_rows(np.array([moment]), BASE + kept / HZ, [0], 1.0)
    time, found = window(buffer, moment)
    if end[0] < 0:
        assert np.isnan(time)
        return
    np.testing.assert_array_equal(found[:, 0], kept[window_rows(begin, end, WINDOW)[0]])
    assert time == pytest.approx(BASE + kept[end[0] - 1] / HZ, abs=1e-6)
    counts = buffer.counts
    assert counts.received == len(kept)
    assert counts.lost == kept[-1] + 1 - (len(kept) - 1)
    assert counts.duplicates + counts.received == 1 + sum(map(len, batches))


def test_memory_stays_as_it_is_and_the_newest_rows_are_there():
    buffer = make_buffer(200)
    for first in range(0, 100_000, 15):
        add(buffer, np.arange(first, first + 15))
    _, found = window(buffer, BASE + 1e6)
    assert np.isnan(window(buffer, BASE + 1e6)[0])
    time, found = window(buffer, BASE + 100_005 / HZ)
    np.testing.assert_array_equal(found[:, 0], np.arange(100_005 - WINDOW, 100_005))
    assert time == pytest.approx(BASE + 100_004 / HZ, abs=1e-6)
    assert len(buffer) == 200
    assert buffer._rows.nbytes == 400 * 2 * 4
    assert buffer.counts.lost == 0


def test_a_window_does_not_reach_over_a_gap():
    buffer = make_buffer()
    add(buffer, np.arange(100))
    later = int(100 + (MAX_ROW_GAP_SECONDS + 0.1) * HZ)
    add(buffer, np.arange(later, later + 10))
    _, found = window(buffer, BASE + (later + 9) / HZ)
    np.testing.assert_array_equal(found[:, 0], [later] * (WINDOW - 10) + list(range(later, later + 10)))


def test_a_moment_never_sees_what_is_later_and_an_old_sensor_is_lost():
    buffer = make_buffer()
    add(buffer, np.arange(150))
    _, found = window(buffer, BASE + 100.5 / HZ)
    assert found[-1, 0] == 100
    assert np.isnan(window(buffer, BASE + 149 / HZ + 0.31, max_age=0.3)[0])
    into = np.zeros(2, np.float32)
    assert buffer.newest(BASE + 100.5 / HZ, into) == pytest.approx(BASE + 100 / HZ, abs=1e-6)
    assert into[0] == 100
    assert np.isnan(buffer.newest(BASE - 1.0, into))


def test_a_better_offset_corrects_rows_that_are_there_already():
    buffer = make_buffer()
    add(buffer, np.arange(20))
    better = OFFSET - 0.05
    add(buffer, np.arange(20, 30), offset=better, times=BASE - 0.05 + np.arange(20, 30) / HZ)
    time, found = window(buffer, BASE - 0.05 + 15 / HZ, rows=5)
    np.testing.assert_array_equal(found[:, 0], np.arange(11, 16))
    assert time == pytest.approx(BASE - 0.05 + 15 / HZ, abs=1e-6)


def test_a_clock_that_jumped_begins_another_stretch():
    buffer = make_buffer()
    add(buffer, np.arange(100))
    # By the sender's clock, which was set back, these would be older than those before.
    add(buffer, np.arange(100, 110), offset=OFFSET + 60, epoch=1)
    _, found = window(buffer, BASE + 109 / HZ)
    np.testing.assert_array_equal(found[:, 0], [100] * (WINDOW - 10) + list(range(100, 110)))
    assert buffer.counts.too_late == 0


def test_the_rate_is_measured():
    buffer = make_buffer()
    assert buffer.rate_hz is None
    add(buffer, np.arange(100))
    assert buffer.rate_hz == pytest.approx(HZ, rel=1e-3)


def picture(view, time, received=None):
    return Picture(view, time, time if received is None else received, b"")


def test_pictures_newest_at_a_moment_are_seen_and_late_ones_dropped():
    buffer = PictureBuffer()
    for time in (1.0, 1.2, 1.1, 1.4):
        buffer.add(picture("View1", time, received=max(time, 1.25)))
    buffer.add(picture("View2", 1.3))
    found = buffer.newest(1.35)
    assert {view: one.time for view, one in found.items()} == {"View1": 1.2, "View2": 1.3}
    assert buffer.late == 1
    assert buffer.newest(0.5) == {}
    assert buffer.views == ("View1", "View2")
    for i in range(100):
        buffer.add(picture("View1", 2.0 + i))
    assert sum(map(len, buffer._views.values())) <= 8


def test_a_picture_from_the_future_does_not_hide_those_after_it():
    buffer = PictureBuffer()
    buffer.add(picture("View1", 5000.0, received=1.0))
    buffer.add(picture("View1", 1.2))
    assert buffer.newest(1.3)["View1"].time == 1.2
