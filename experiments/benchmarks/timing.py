"""The clock of the benchmarks: sides in turn, so that what else the machine does falls on all of them alike."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the seconds that a call took, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def time_in_turn(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of `rounds` calls of each side, one call of each after another."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            seconds[name].append(timed(call)[0])
    return seconds


def machine() -> dict[str, Any]:
    """Returns what a figure depends on: the processors that may be used, and how busy they are now."""
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
    }
