"""The line about a live run, in a terminal and without one, and where nobody reads it."""

import os
import threading
import time

from vla_jax.live.status import Status, StatusLine, status_text


def status(**changes):
    values = {
        "mode": "run",
        "episode": 2,
        "received": {"state": 100, "features": 3},
        "ages_s": {"state": 0.023, "features": None, "View1": 0.1435},
        "missed": 4,
        "late_ms": 0.26,
        "queue": 7,
        "action": "dx +0.010",
    }
    return Status(**(values | changes))


class Stream:
    def __init__(self, is_terminal):
        self.text, self.isatty, self.flush = "", lambda: is_terminal, lambda: None

    def write(self, text):
        self.text += text


def test_the_line_says_rates_ages_misses_queue_action_and_reasons():
    assert status_text(status(reasons=("force",)), {"state": 99.7, "features": 2.6}) == (
        "run episode 2 | state 100 Hz 23 ms · features 3 Hz – · View1 144 ms | late 0.3 ms, missed 4 | queue 7 | "
        "dx +0.010 | force"
    )


def test_a_terminal_s_line_is_redrawn_and_a_file_gets_lines():
    for is_terminal in (True, False):
        stream = Stream(is_terminal)
        line = StatusLine(stream)
        line.show(status())
        line.say("hold: force")
        line.show(status())
        line.close()
        assert stream.text.count("run episode 2") == 2
        assert stream.text.count("\r") == (3 if is_terminal else 0)
        assert stream.text.count("\n") == (2 if is_terminal else 3)


def test_a_pipe_that_nobody_reads_holds_nobody_up():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        line = StatusLine(stream)
        begun = time.monotonic()
        for _ in range(2000):
            line.say("x" * 1000)
        assert time.monotonic() - begun < 1.0
        drained = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(reading, 65536), b"")])
        drained.start()
        line.close()
    drained.join()
    os.close(reading)
