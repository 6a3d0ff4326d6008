"""One line a second about a live run: redrawn in a terminal, and a plain line every ten seconds without one.

Written by a thread of its own: a terminal that is held, or a pipe that nobody reads, must not hold the arm's loop.
"""

import queue
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

from vla_jax.progress import SECONDS_BETWEEN_LINES

_EVERY_S = 1.0
_MAX_WAITING = 20
_CLOSING_S = 1.0


@dataclass(frozen=True)
class Status:
    """What the line shows. received: stream → messages so far; ages_s: name → age, None where there is nothing."""

    mode: str
    episode: int
    received: Mapping[str, int]
    ages_s: Mapping[str, float | None]
    missed: int
    late_ms: float
    queue: int
    action: str
    reasons: tuple[str, ...] = ()


class StatusLine:
    """Shows the status now and then. No method waits."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._every_s = _EVERY_S if self._is_terminal else SECONDS_BETWEEN_LINES
        self._shown_at = time.monotonic()
        self._received: Mapping[str, int] = {}
        self._texts: queue.Queue[str | None] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._write, name="status", daemon=True)
        self._thread.start()

    @property
    def is_due(self) -> bool:
        """Whether it is time for another line."""
        return time.monotonic() - self._shown_at >= self._every_s

    def show(self, status: Status) -> None:
        """Replaces the line."""
        now = time.monotonic()
        elapsed, self._shown_at = now - self._shown_at, now
        rates = {
            name: (count - self._received.get(name, 0)) / elapsed for name, count in status.received.items()
        }
        self._received = status.received
        text = status_text(status, rates)
        self._put(f"\r\x1b[2K{text}" if self._is_terminal else f"{text}\n")

    def say(self, text: str) -> None:
        """Writes a line that stays."""
        self._put(f"\r\x1b[2K{text}\n" if self._is_terminal else f"{text}\n")

    def close(self) -> None:
        """Ends the line."""
        if self._is_terminal:
            self._put("\n")
        self._put(None)
        self._thread.join(_CLOSING_S)

    def _put(self, text: str | None) -> None:
        if not self._texts.full():
            self._texts.put(text)

    def _write(self) -> None:
        while (text := self._texts.get()) is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except OSError:
                return  # Nobody reads it any more.


def status_text(status: Status, rates_hz: Mapping[str, float]) -> str:
    """Returns the line."""
    streams = []
    for name in dict.fromkeys([*rates_hz, *status.ages_s]):
        rate = f" {rates_hz[name]:.0f} Hz" if name in rates_hz else ""
        age = status.ages_s.get(name)
        if name in status.ages_s:
            rate += " –" if age is None else f" {1e3 * age:.0f} ms"
        streams.append(name + rate)
    parts = [
        f"{status.mode} episode {status.episode}",
        " · ".join(streams),
        f"late {status.late_ms:.1f} ms, missed {status.missed}",
        f"queue {status.queue}",
        status.action,
        ", ".join(status.reasons),
    ]
    return " | ".join(part for part in parts if part)
