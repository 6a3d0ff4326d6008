"""Real processes for the tests of what survives them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.commands import REPOSITORY


def start_python(code: str, *arguments: object) -> subprocess.Popen:
    """Starts a fresh interpreter on `code`, with its output captured."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 60.0) -> None:
    """Waits until `condition` holds; fails when the process ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)


def is_running(number: int) -> bool:
    """Whether a process of this number is at work; one that has ended and that nobody waited for is not."""
    try:
        status = Path(f"/proc/{number}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def kill(process: subprocess.Popen) -> None:
    """Kills a process without warning."""
    process.kill()
    process.wait()
    for pipe in (process.stdout, process.stderr):
        pipe.close()
