"""Waiting for what another thread or process does, but not for ever."""

import time
from collections.abc import Callable


def wait_until(happened: Callable[[], object], seconds: float = 10.0) -> None:
    """Returns when something has happened; fails when it has not for so long."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.005)
