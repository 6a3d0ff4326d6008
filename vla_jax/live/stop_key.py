"""A key that stops: q, space or Escape in the terminal that a command runs in; and others that do something."""

import contextlib
import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Mapping

STOP_KEYS = (b"q", b"Q", b" ", b"\x1b")
_POLL_S = 0.05


@contextlib.contextmanager
def stop_key(also: Mapping[bytes, Callable[[], None]] | None = None) -> Iterator[threading.Event]:
    """Yields an event that is set when the key is pressed; never, where there is no terminal. Keys do not appear.

    also: other keys, and what they do, on a thread of their own.
    """
    others = also or {}
    pressed, closing = threading.Event(), threading.Event()
    if not sys.stdin.isatty():
        yield pressed
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def read_keys() -> None:
        while not closing.is_set():
            ready, _, _ = select.select([terminal], [], [], _POLL_S)
            if not ready:
                continue
            key = os.read(terminal, 1)
            if key in STOP_KEYS:
                pressed.set()
            elif key in others:
                others[key]()
            elif not key:  # The terminal has gone, and whoever could stop it with it.
                pressed.set()
                return

    thread = threading.Thread(target=read_keys, name="stop-key", daemon=True)
    try:
        tty.setcbreak(terminal)
        thread.start()
        yield pressed
    finally:
        closing.set()
        thread.join()
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
