"""Stopping between two pieces of work when the machine is taken away or the user has seen enough."""

import contextlib
import logging
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)


@dataclass
class StopFlag:
    """Set by the first SIGTERM or Ctrl-C. signal: its number."""

    signal: int | None = None

    @property
    def is_set(self) -> bool:
        """Whether the work is to stop."""
        return self.signal is not None


@contextlib.contextmanager
def stop_requested(notice: str | None = None) -> Iterator[StopFlag]:
    """Turns SIGTERM and Ctrl-C into a flag that a loop looks at after each piece of work; a second one stops at once.

    Outside the main thread, where signals are somebody else's, the flag is never set.

    notice: warning that the first signal logs.
    """
    flag = StopFlag()
    previous: dict[int, Any] = {}

    def handle(number: int, frame: Any) -> None:
        flag.signal = number
        signal.signal(number, previous[number])
        if notice is not None:
            logger.warning(notice)

    with contextlib.suppress(ValueError):  # not the main thread
        for number in (signal.SIGTERM, signal.SIGINT):
            previous[number] = signal.signal(number, handle)
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
