"""Keys in a terminal: those that stop, others that do something, and a terminal as it was before."""

import os
import pty
import sys
import termios
import time

import pytest

from vla_jax.live.stop_key import stop_key


class Terminal:
    """The program's side of a terminal, as stdin."""

    def __init__(self, fd):
        self.fileno = lambda: fd
        self.isatty = lambda: os.isatty(fd)


@pytest.fixture
def terminal(monkeypatch):
    ours, theirs = pty.openpty()
    monkeypatch.setattr(sys, "stdin", Terminal(theirs))
    yield ours, theirs
    for fd in (ours, theirs):
        os.close(fd)


@pytest.mark.parametrize("key", [b"q", b" ", b"\x1b"])
def test_a_key_stops(terminal, key):
    ours, theirs = terminal
    before = termios.tcgetattr(theirs)
    with stop_key() as pressed:
        os.write(ours, b"xyz")
        assert not pressed.wait(0.2)
        os.write(ours, key)
        assert pressed.wait(5.0)
    assert termios.tcgetattr(theirs) == before


def test_another_key_does_what_it_is_for(terminal):
    ours, _ = terminal
    done = []
    with stop_key({b"e": lambda: done.append(1)}) as pressed:
        os.write(ours, b"e")
        until = time.monotonic() + 5
        while not done and time.monotonic() < until:
            time.sleep(0.01)
        assert done == [1]
        assert not pressed.is_set()


def test_without_a_terminal_nothing_is_read(monkeypatch):
    with open(os.devnull, "rb") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with stop_key() as pressed:
            assert not pressed.is_set()
