"""The control grid in real time: moments that lie whole periods after the first, and never a burst."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

SPIN_S = 5e-4
"""Before a tick, so that it is not woken late by what a timer's slack is."""
LATE_SHARE = 0.5
"""A tick that is woken later than this share of the period is left out: the next one is nearer."""


@dataclass(frozen=True)
class Tick:
    """One control tick. scheduled, woke: seconds on the ticks' clock. missed: ticks left out just before it."""

    number: int
    scheduled: float
    woke: float
    missed: int


class Ticks:
    """Waits for one control tick after another.

    Deadlines are whole periods after the first, so that nothing adds up. A tick whose moment has passed is counted
    and left out, never made up for.
    """

    def __init__(
        self,
        period_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._period_s = period_s
        self._clock = clock
        self._sleep = sleep
        self._first = clock()
        self._number = 0

    def wait(self, watch: Callable[[], None] | None = None, every_s: float = 0.02) -> Tick:
        """Returns at the next tick's moment. watch: called now and then until then, and briefly."""
        due = self._number + 1
        number = due
        while True:
            number = max(number, self._next_in_time())
            scheduled = self._first + number * self._period_s
            self._sleep_until(scheduled, watch, every_s)
            woke = self._clock()
            if woke - scheduled <= LATE_SHARE * self._period_s:
                self._number = number
                return Tick(number, scheduled, woke, number - due)
            number += 1

    @property
    def idle_s(self) -> float:
        """Seconds until the next tick; negative where it is late."""
        return self._first + (self._number + 1) * self._period_s - self._clock()

    def _next_in_time(self) -> int:
        """Returns the first tick that is not late by now."""
        return math.ceil((self._clock() - self._first) / self._period_s - LATE_SHARE)

    def _sleep_until(self, moment: float, watch: Callable[[], None] | None, every_s: float) -> None:
        while (left := moment - SPIN_S - self._clock()) > 0:
            self._sleep(min(left, every_s))
            if watch is not None:
                watch()
        while self._clock() < moment:
            self._sleep(0)
