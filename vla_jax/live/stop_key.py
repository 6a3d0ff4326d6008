"""A key that stops: q, space or Escape in the terminal that a command runs in."""

import contextlib
import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Iterator

STOP_KEYS = (b"q", b"Q", b" ", b"\x1b")
_POLL_S = 0.05


@contextlib.contextmanager
def stop_key() -> Iterator[threading.Event]:
    """Yields an event that is set when the key is pressed; never, where there is no terminal. Keys do not appear."""
    pressed, closing = threading.Event(), threading.Event()
    if not sys.stdin.isatty():
        yield pressed
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def read_keys() -> None:
        while not closing.is_set():
            ready, _, _ = select.select([terminal], [], [], _POLL_S)
            if ready and os.read(terminal, 1) in STOP_KEYS:
                pressed.set()

    thread = threading.Thread(target=read_keys, name="stop-key", daemon=True)
    try:
        tty.setcbreak(terminal)
        thread.start()
        yield pressed
    finally:
        closing.set()
        thread.join()
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
