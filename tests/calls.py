"""Calling the project's commands through their entry point in this process, which takes no time to start."""

import contextlib
import io
import subprocess
import sys
from unittest import mock

from experiments.commands import command_module


def call_here(name: str, *words: object) -> subprocess.CompletedProcess:
    """Runs a command as `vla-jax NAME WORDS` does, and returns its exit status and what it printed.

    An exception that the command lets pass, which a process would end on with a traceback, passes here too.
    """
    argv = ["/usr/bin/vla-jax", *map(str, words)]
    output, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "stdin", io.StringIO()),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        try:
            command_module(name).COMMAND.run()
        except SystemExit as end:
            status = int(end.code or 0)
    return subprocess.CompletedProcess([name, *argv[1:]], status, output.getvalue(), errors.getvalue())
