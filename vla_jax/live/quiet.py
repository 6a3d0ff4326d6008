"""A Python interpreter that does not hold up a control loop."""

import contextlib
import gc
import sys
import time
from collections.abc import Callable, Iterator

SWITCH_INTERVAL_S = 5e-4
"""How long another thread may keep the interpreter from a tick that is due."""
COLLECT_EVERY_S = 5.0
COLLECT_IDLE_S = 0.05


@contextlib.contextmanager
def quiet_interpreter() -> Iterator[Callable[[float], None]]:
    """While it lasts, garbage is collected only in idle time; what is there at the beginning is never looked at.

    Yields a function to be called with the seconds for which nothing is due.
    """
    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.disable()
    collected_at = time.monotonic()

    def use_idle_time(seconds: float) -> None:
        nonlocal collected_at
        if time.monotonic() - collected_at > COLLECT_EVERY_S and seconds > COLLECT_IDLE_S:
            gc.collect()
            collected_at = time.monotonic()

    try:
        yield use_idle_time
    finally:
        gc.enable()
        gc.unfreeze()
        sys.setswitchinterval(switch_interval)
