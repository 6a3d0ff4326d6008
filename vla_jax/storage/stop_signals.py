"""Stopping between two updates when the machine is taken away or the user has seen enough."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class StopFlag:
    """Set by the first SIGTERM or Ctrl-C."""

    is_set: bool = False


@contextlib.contextmanager
def stop_requested() -> Iterator[StopFlag]:
    """Turns SIGTERM and Ctrl-C into a flag that the loop looks at after each update; a second one stops at once."""
    flag = StopFlag()
    previous: dict[int, Any] = {}

    def handle(number: int, frame: Any) -> None:
        flag.is_set = True
        signal.signal(number, previous[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.signal(number, handle)
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
