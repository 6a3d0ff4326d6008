"""How long a run will take, said once its first updates are done."""

import time
from collections.abc import Callable
from typing import Any

import jax

MEASURED = 10
SECONDS_WORTH_SAYING = 60.0


class Pace:
    """Measures ten updates after the first and says how long the others will take. start, steps: of the run."""

    def __init__(self, start: int, steps: int, announce: Callable[[str], None]) -> None:
        self._first = start + 1
        self._steps = steps
        self._announce = announce
        self._began = 0.0

    def updated(self, step: int, result: Any) -> None:
        """Is told of every update. result: arrays of its; waited for twice in a run, since updates are only begun."""
        if step == self._first:
            jax.block_until_ready(result)
            self._began = time.perf_counter()
        elif step == self._first + MEASURED:
            jax.block_until_ready(result)
            each = (time.perf_counter() - self._began) / MEASURED
            left = (self._steps - step) * each
            if left >= SECONDS_WORTH_SAYING:
                self._announce(
                    f"{each:.2g} s an update: about {duration(left)} for the {self._steps - step} left"
                )


def duration(seconds: float) -> str:
    """Returns a length of time as a person says it, for instance "22 hours"."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
