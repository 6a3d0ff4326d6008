"""What the benchmarks share: a clock for sides in turn, the machine's description, a place for what they write.

Sides are timed in turn, so that what else the machine does falls on all of them alike.
"""

import contextlib
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vla_jax.errors import UserError


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
        "machine": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
    }


def _processor() -> str:
    """Returns the processor's name; Python itself knows only the architecture on Linux."""
    information = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", information.read_text()) if information.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()


@contextlib.contextmanager
def scratch_folder(parent: Path | None) -> Iterator[Path]:
    """Makes a folder for what a benchmark writes, in `parent` or where temporary files go, and removes it afterwards.

    Raises:
        UserError: `parent` is no directory.
    """
    if parent is not None and not parent.is_dir():
        raise UserError(f"{parent}: no such directory; --scratch names one that exists")
    with tempfile.TemporaryDirectory(dir=parent, prefix="vla-jax-benchmark-") as folder:
        yield Path(folder)
