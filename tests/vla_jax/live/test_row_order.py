"""Late rows find their place while they are held back."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vla_jax.live.row_order import RowOrder


def add(order, times, offset=0.0, epoch=0):
    times = np.asarray(times, float)
    order.add(times + offset, (times * 10)[:, None], offset, epoch)


def test_rows_that_come_out_of_order_are_written_in_order():
    order = RowOrder(0.2)
    add(order, [1.0, 1.1])
    add(order, [1.3])
    add(order, [1.2])
    times, rows = order.take()
    np.testing.assert_allclose(times, [1.0, 1.1])
    assert [row.tolist() for row in rows] == [[10], [11]]
    times, _ = order.take(everything=True)
    np.testing.assert_allclose(times, [1.2, 1.3])
    assert order.dropped == 0


def test_rows_that_come_twice_or_too_late_are_dropped():
    order = RowOrder(0.1)
    add(order, [1.0, 1.1, 1.1, 1.5])
    assert len(order.take()[0]) == 2
    add(order, [1.05])
    assert order.take(everything=True)[0].tolist() == [1.5]
    assert order.dropped == 2


def test_times_are_by_the_newest_offset_and_ascend_over_a_jump():
    order = RowOrder(0.2)
    add(order, [1.0, 2.0], offset=5.0)
    add(order, [3.0], offset=5.25)
    times, _ = order.take(everything=True)
    np.testing.assert_allclose(times, [6.25, 7.25, 8.25])
    assert order.is_of(1)
    add(order, [103.0, 104.0], offset=-95.0, epoch=1)
    assert not order.is_of(2)
    assert order.take(everything=True)[0].tolist() == [9.0]  # 8.0 lies before what is written


@given(st.permutations(range(9)), st.lists(st.integers(1, 8), max_size=4))
def test_whatever_the_order_every_row_is_written_once_within_the_hold(numbers, cuts):
    order, found = RowOrder(100.0), []
    for number in numbers:
        add(order, [float(number)])
        if number in cuts:
            found += order.take()[0].tolist()
    found += order.take(everything=True)[0].tolist()
    assert found == [float(number) for number in range(9)]
    assert order.dropped == 0
