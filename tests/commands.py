"""Running the project's commands as a user does: in their own process, looking at what they print."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent


def start_command(name: str, *arguments: object, **environment: str) -> subprocess.Popen:
    """Starts `python -m experiments.NAME` on the CPU with its output captured."""
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_command(
    name: str, *arguments: object, status: int = 0, **environment: str
) -> subprocess.CompletedProcess:
    """Runs a command to its end and checks its exit status."""
    process = start_command(name, *arguments, **environment)
    output, errors = process.communicate(timeout=600)
    done = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
    assert done.returncode == status, f"{name} ended with {done.returncode}:\n{output}\n{errors}"
    return done


def run_on_eight_devices(script: str, *arguments: object) -> Any:
    """Runs Python code in a process with eight simulated devices; returns the JSON that its last line prints."""
    devices = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def error_line(done: subprocess.CompletedProcess) -> str:
    """Returns the one line in which a command says what is wrong, and checks that it is one line, no traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.rstrip().endswith(lines[0]), done.stderr
    return lines[0]
