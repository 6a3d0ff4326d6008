"""The frame of every benchmark: common options, the conditions first, the table and the JSON file last.

A benchmark is its cases, which give `Timing`s, and its table, which is the common one with columns of its own.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table

from experiments.benchmarks.timing import Timing
from experiments.console import make_console
from vla_jax.errors import UserError
from vla_jax.storage.replacing import replace_text

TimingT = TypeVar("TimingT", bound=Timing)


@dataclass(frozen=True, kw_only=True)
class FrameArguments:
    """Options of every benchmark."""

    rounds: int = 5
    """How often each side is timed, in turn with the others; the table shows medians."""
    out: Path | None = None
    """JSON file for the figures."""


class Frame:
    """One run of a benchmark, from its conditions to its figures."""

    def __init__(self, arguments: FrameArguments, conditions: Mapping[str, Any]) -> None:
        """Prints the conditions.

        Raises:
            UserError: the folder of the JSON file does not exist; better said now than at the end.
        """
        if arguments.out is not None and not arguments.out.parent.is_dir():
            raise UserError(
                f"{arguments.out.parent}: no such directory; --out names a file in one that exists"
            )
        self._out = arguments.out
        self._conditions = dict(conditions)
        self._console = make_console()
        self._console.print(self._conditions)

    def say(self, text: str) -> None:
        """Prints what is being done or was found."""
        self._console.print(text)

    def finish(self, timings: Sequence[Timing], *tables: Table, **details: Any) -> None:
        """Prints the tables and writes the file: conditions, results, and the details (JSON values) by their names."""
        for table in tables:
            self._console.print(table)
        if self._out is not None:
            results = [timing.figures() for timing in timings]
            content = {"conditions": self._conditions, "results": results, **details}
            replace_text(self._out, json.dumps(content, indent=2) + "\n")


def timing_table(
    timings: Sequence[TimingT],
    *,
    versus: str = "vs the first",
    columns: Mapping[str, Callable[[TimingT], str]] | None = None,
    title: str | None = None,
) -> Table:
    """Tabulates timings of one unit, each with its speed relative to the first side of its case.

    versus: heading of the relative speed. columns: more of them, after the common ones.
    """
    columns = columns or {}
    table = Table(title=title, title_justify="left")
    for heading in ("case", "side"):
        table.add_column(heading, no_wrap=True)
    unit = timings[0].unit if timings else "calls"
    for heading in ("median ms", "quartiles ms", f"{unit}/s", versus, *columns):
        table.add_column(heading, justify="right")
    first: dict[str, TimingT] = {}
    for timing in timings:
        lower, upper = timing.quartiles_s
        relative = timing.rate / first.setdefault(timing.case, timing).rate
        table.add_row(
            timing.case,
            timing.side,
            _milliseconds(timing.median_s),
            f"{_milliseconds(lower)}–{_milliseconds(upper)}",
            f"{timing.rate:.3g}" if timing.rate < 1000 else f"{timing.rate:.0f}",
            f"{relative:.2f}x" if relative >= 0.1 else f"{relative:.2g}x",
            *(show(timing) for show in columns.values()),
        )
    return table


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def require_positive(arguments: object, *names: str) -> None:
    """Refuses a count, or one of several, below 1.

    Raises:
        UserError: names the option and its value.
    """
    for name in names:
        value = getattr(arguments, name)
        if min(value if isinstance(value, tuple) else (value,), default=1) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")


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
