"""A policy served by the command itself, in a process of its own."""

import contextlib
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from tests.commands import start_command


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen
    port: int
    said: str
    """What it printed until it served."""


@contextlib.contextmanager
def served(*arguments: object, stop: signal.Signals = signal.SIGTERM) -> Iterator[Served]:
    """Runs `serve` on a free port; at the end it must stop cleanly at the signal."""
    with start_command("serve", *arguments, "--port", 0) as process:
        assert process.stdout is not None
        said, address = "", None
        try:
            while address is None:
                line = process.stdout.readline()
                assert line, process.communicate()[1]
                said += line
                address = re.search(r"serving at ws://\S+:(\d+)$", line)
            yield Served(process, int(address[1]), said)
            process.send_signal(stop)
            output, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert output == "stopped\n"
    assert "Traceback" not in errors, errors
