"""The frame of every command: parse, run, and turn a user's mistake into one line and status 2."""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from vla_jax.errors import UserError

ArgumentsT = TypeVar("ArgumentsT")

USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130


def run(
    command: Callable[[ArgumentsT], Any],
    arguments_type: type[ArgumentsT],
    *,
    name: str,
    description: str,
    argv: list[str] | None = None,
) -> None:
    """Parses the command line into `arguments_type`, runs `command` on it and exits the process.

    Exit status: 0 when `command` returns None, else the integer it returns; 2 and one line on stderr for a
    `UserError` or a wrong flag; 130 on Ctrl-C. `--debug` shows the traceback of a `UserError` instead.

    name: what follows `python -m experiments.` for this command.
    description: first paragraph of the command's `--help`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO, format="%(levelname).1s %(name)s: %(message)s"
    )
    for noisy in ("absl", "jax", "orbax", "asyncio", "matplotlib", "PIL", "httpx", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        arguments = tyro.cli(
            arguments_type,
            args=argv,
            prog=f"python -m experiments.{name}",
            description=description + "\n\n--debug (any command) shows the traceback of an error.",
        )
        status = command(arguments)
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = USER_ERROR_STATUS
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED_STATUS
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone; nothing is left to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.stdout.flush()
    sys.exit(status or 0)
