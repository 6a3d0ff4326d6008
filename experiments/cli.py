"""The frame of every command: parse, run, and turn a user's mistake into one line and status 2."""

import io
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import tyro

from experiments.usage_errors import one_line_usage_errors
from vla_jax.errors import UserError

ArgumentsT = TypeVar("ArgumentsT")

CONSOLE_SCRIPT = "vla-jax"
USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130
# Whose errors come with tracebacks of many threads, and then as one exception to us.
_TELL_AND_THROW = ("absl", "orbax")
_NOISY_LOGGERS = ("absl", "jax", "orbax", "asyncio", "matplotlib", "PIL", "httpx", "urllib3", "fontTools")


@dataclass(frozen=True)
class Command(Generic[ArgumentsT]):
    """One command. Its module declares it as COMMAND, for `python -m experiments.NAME` and for `vla-jax NAME`.

    A module's top imports only what its options need; `main` imports the rest, so that `--help` comes at once.
    """

    name: str
    """What follows `python -m experiments.`; listed in `experiments.commands`."""
    arguments: type[ArgumentsT] | Any
    """Dataclass of its options, or a union of annotated ones where it has subcommands."""
    description: str
    """First paragraph of its help."""
    main: Callable[[ArgumentsT], int | None]
    """Does the work; returns the exit status, None for 0."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Options that had another name in earlier versions: old → new. Help shows the new ones."""

    def run(self, argv: Sequence[str] | None = None) -> NoReturn:
        """Parses the command line, runs the command on it and exits the process.

        Exit status: 0 when `main` returns None, else the integer it returns; 2 and one line on stderr for a
        `UserError` or a wrong option; 130 on Ctrl-C. `--debug` shows the traceback of a `UserError` instead.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # File names need not be text.
        debug = "--debug" in words
        logging.basicConfig(
            level=logging.DEBUG if debug else logging.INFO, format="%(levelname).1s %(name)s: %(message)s"
        )
        for noisy in _NOISY_LOGGERS:
            logging.getLogger(noisy).setLevel(logging.WARNING)
        if not debug:
            for thrower in _TELL_AND_THROW:
                logging.getLogger(thrower).setLevel(logging.CRITICAL)
            sys.unraisablehook = _unless_in_a_native_thread
        try:
            status = self.main(self.parse([word for word in words if word != "--debug"]))
        except UserError as error:
            if debug:
                traceback.print_exc()
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            if isinstance(error.__cause__, OSError):
                _quiet_libraries()
            status = USER_ERROR_STATUS
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            status = INTERRUPTED_STATUS
        except BrokenPipeError:
            # The reader of our output (`| head`) has gone; nothing is left to say, not even at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = 0
        except (OSError, MemoryError) as error:
            reason = _what_the_machine_lacks(error)
            if reason is None or debug:
                raise
            print(f"error: {reason}", file=sys.stderr)
            _quiet_libraries()
            status = USER_ERROR_STATUS
        sys.stdout.flush()
        sys.exit(status or 0)

    def parse(self, words: Sequence[str]) -> ArgumentsT:
        """Returns the options that the words give.

        Raises:
            UserError: a word is no option, a value does not fit, or a required one is missing.
            SystemExit: `--help` was asked for and is printed.
        """
        program = called(self.name)
        words = [self.renamed.get(word, word) for word in words]
        # The word None is no value of an option: to leave an option at its default is to leave it out.
        config = (tyro.conf.DisallowNone,)
        with one_line_usage_errors(self.arguments, words, program):
            return tyro.cli(
                self.arguments,
                args=list(words),
                prog=program,
                description=self.description + "\n\n--debug (any command) shows the traceback of an error.",
                config=config,
            )


def _unless_in_a_native_thread(args: "sys.UnraisableHookArgs") -> None:
    """Leaves out what threads of libraries cannot raise to anyone: tensorstore's, where one failed write stops all."""
    if args.object is not None or threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(args)


def _quiet_libraries() -> None:
    """Keeps what libraries' threads and their last words at exit would add to a fault of the disk that is told."""
    in_threads, at_exit = threading.excepthook, sys.unraisablehook

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if not issubclass(args.exc_type, OSError):
            in_threads(args)

    def unraisable(args: "sys.UnraisableHookArgs") -> None:
        if not issubclass(args.exc_type, OSError):
            at_exit(args)

    threading.excepthook, sys.unraisablehook = in_thread, unraisable
    warnings.simplefilter("ignore", RuntimeWarning)  # Of what was to be written after the fault.


def _what_the_machine_lacks(error: OSError | MemoryError) -> str | None:
    """Says in one line that memory or a disk does not suffice; None for errors of other kinds."""
    from vla_jax.storage.replacing import why_not_written

    if isinstance(error, MemoryError):
        return " ".join(f"not enough memory: {error}; give smaller sizes or batches".split())
    reason = why_not_written(error)
    return None if reason is None else f"cannot write: {reason}"


def called(name: str) -> str:
    """Returns how to call a command in the way in which this process was called."""
    if Path(sys.argv[0]).stem == CONSOLE_SCRIPT:
        return f"{CONSOLE_SCRIPT} {name}"
    return f"python -m experiments.{name}"
