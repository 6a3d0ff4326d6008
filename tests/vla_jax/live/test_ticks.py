"""The control grid in real time, by a clock of the test's own."""

import pytest

from vla_jax.live.ticks import Ticks

PERIOD = 0.1


class Clock:
    """Time that passes only where somebody sleeps; each sleep takes `slack` more than it should."""

    def __init__(self, slack=0.0):
        self.now, self.slack, self.slept = 1000.0, slack, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += max(seconds, 1e-5) + (self.slack if seconds else 0.0)


def make_ticks(clock):
    return Ticks(PERIOD, clock=clock, sleep=clock.sleep)


def test_ticks_do_not_drift_however_long_the_work_takes():
    clock = Clock(slack=2e-4)
    ticks = make_ticks(clock)
    for number in range(1, 1001):
        tick = ticks.wait()
        assert tick.number == number
        assert tick.scheduled == pytest.approx(1000.0 + number * PERIOD, abs=1e-9)
        assert 0 <= tick.woke - tick.scheduled < 1e-4
        assert tick.missed == 0
        clock.now += 0.07 * (number % 2)


def test_what_is_late_is_counted_and_left_out_and_never_made_up_for():
    clock = Clock()
    ticks = make_ticks(clock)
    ticks.wait()
    clock.now += 0.47  # Ticks 2 to 5 pass; 6 is due in 0.03 s.
    tick = ticks.wait()
    assert (tick.number, tick.missed) == (6, 4)
    assert tick.woke == pytest.approx(1000.6, abs=1e-4)
    assert (ticks.wait().number, clock.now) == (7, pytest.approx(1000.7, abs=1e-4))


def test_a_little_late_is_not_left_out():
    clock = Clock()
    ticks = make_ticks(clock)
    ticks.wait()
    clock.now += 0.12
    tick = ticks.wait()
    assert (tick.number, tick.missed) == (2, 0)
    assert tick.woke - tick.scheduled == pytest.approx(0.02, abs=1e-4)


def test_a_wake_that_comes_too_late_is_left_out_too():
    clock = Clock()
    ticks = make_ticks(clock)
    ticks.wait()

    def oversleep():
        if clock.now < 1000.2:
            clock.now = 1000.27

    tick = ticks.wait(oversleep)
    assert (tick.number, tick.missed) == (3, 1)


def test_somebody_looks_between_ticks():
    clock, looked = Clock(), []
    ticks = make_ticks(clock)
    ticks.wait(lambda: looked.append(clock.now))
    assert 4 <= len(looked) <= 6
    assert ticks.idle_s == pytest.approx(PERIOD, abs=1e-3)
