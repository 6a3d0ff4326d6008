"""Messages leave at their moments, in their order, while their sender is there."""

import time

import numpy as np
import pytest

from experiments.phantom.lab.faults import STREAMS, FaultRates, make_links
from experiments.phantom.lab.senders import Post, Senders
from vla_jax.live.clock import LocalClock


class Line:
    """A socket that notes what it is given."""

    def __init__(self) -> None:
        self.is_open, self.num_opened, self.sent = False, 0, []

    def open(self) -> None:
        self.is_open = True
        self.num_opened += 1

    def close(self, linger_ms: int = 0) -> None:
        self.is_open = False

    def send(self, parts: list[bytes]) -> bool:
        if self.is_open:
            self.sent.append((time.time(), int(parts[0])))
        return self.is_open


@pytest.fixture
def make():
    """Starts senders with faults of all streams; they are closed at the end."""
    started = []

    def start(**rates):
        clock, lines = LocalClock(), {stream: Line() for stream in STREAMS}
        senders = Senders(clock, lines, make_links(dict.fromkeys(STREAMS, FaultRates(**rates)), 0))
        senders.start()
        started.append(senders)
        return senders, lines, clock

    yield start
    for senders in started:
        senders.close()
        assert not senders.is_alive()


def post(senders, stream, due_s, number):
    senders.post(Post(due_s, stream, due_s - 0.01, due_s + 3.0, lambda now: [b"%d" % number]))


def test_messages_leave_when_they_are_due_whatever_order_they_are_posted_in(make):
    senders, lines, clock = make()
    start = clock.now()
    for number in (3, 1, 2, 0):
        post(senders, "sensor", start + 0.05 * number, number)
    post(senders, "robot", start + 0.05, 7)
    time.sleep(0.25)
    assert [number for _, number in lines["sensor"].sent] == [0, 1, 2, 3]
    assert len(lines["robot"].sent) == 1
    sent = senders.sent["sensor"]
    assert min(sent.late_s) >= 0
    np.testing.assert_allclose(np.subtract(sent.stamped_s, sent.taken_s), 3.01)
    np.testing.assert_array_equal(sent.sent_s, sent.arrived_s)


def test_what_is_due_is_sent_before_the_end(make):
    senders, lines, clock = make()
    post(senders, "robot", clock.now() + 0.1, 1)
    senders.close()
    assert len(lines["robot"].sent) == 1
    assert not lines["robot"].is_open


def test_a_sender_that_restarts_comes_back_though_it_has_nothing_to_say(make):
    senders, lines, clock = make(restart=0.05, down=0.05)
    start = clock.now()
    for number in range(50):
        post(senders, "sensor", start + 0.01 * number, number)
    time.sleep(0.8)
    assert lines["robot"].num_opened > 2
    counts = senders.counts["sensor"]
    assert counts["restarts"] >= 2
    assert counts["not sent while down"] > 0
    assert counts["sent"] == len(lines["sensor"].sent) == 50 - counts["not sent while down"]


def test_lost_messages_never_arrive(make):
    senders, lines, clock = make(lost=1.0)
    post(senders, "cameras", clock.now(), 1)
    time.sleep(0.1)
    assert lines["cameras"].sent == []
    assert np.isnan(senders.sent["cameras"].arrived_s[0])
