"""`python -m experiments.compare RUN…`: several training runs side by side."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from experiments import cli
from experiments.console import make_console, print_table
from vla_jax.errors import UserError
from vla_jax.storage.replacing import replace_text

if TYPE_CHECKING:
    from vla_jax.reporting.comparison_page import Row
    from vla_jax.training.history import RunHistory

DESCRIPTION = """Tabulates training runs: loss, error on held-out episodes, time, and the settings in which they differ.

Runs may be finished, interrupted or still going. With --out it writes a self-contained HTML page with the learning
curves, and comparison.json with the numbers."""


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN …]")]
    """Training output directories."""
    out: Path | None = None
    """Directory for comparison.html and comparison.json, or the name of the .html file."""
    reach: float | None = None
    """Held-out action error (mean square, actions' units) for which to say at which update each run reached it."""


def main(arguments: Arguments) -> None:
    """Prints the table, and writes the page when asked to."""
    from vla_jax.reporting.comparison_page import compare
    from vla_jax.training.history import read_history

    if not arguments.runs:
        raise UserError("give at least one training output directory")
    if arguments.reach is not None and not 0 < arguments.reach < math.inf:
        raise UserError(f"--reach must be above 0, not {arguments.reach:g}")
    histories = [read_history(run) for run in arguments.runs]
    rows = compare(histories, arguments.reach)
    console = make_console()
    print_table(
        console, summary_table(rows, arguments.reach), ("data wait", "lowest", "updates/s", "at update")
    )
    if len(histories) > 1:
        print_table(console, difference_table(histories, rows))
    if arguments.out is not None:
        path = write_report(arguments.out, histories, rows, arguments.reach)
        console.print(f"report: {path}", soft_wrap=True)


def summary_table(rows: Sequence["Row"], limit: float | None) -> Table:
    """Returns the runs' figures, a row per run."""
    from vla_jax.reporting.comparison_page import NOTE, cells

    shown = [cells(row, limit) for row in rows]
    table = Table(title="training runs", caption=NOTE)
    table.add_column("run", overflow="fold")
    for name in shown[0]:
        table.add_column(name, justify="right")
    for row, values in zip(rows, shown, strict=True):
        table.add_row(row.name, *values.values())
    return table


def difference_table(histories: Sequence["RunHistory"], rows: Sequence["Row"]) -> Table:
    """Returns the settings that are not the same in all runs, a column per run."""
    from vla_jax.reporting.comparison_page import differences, text

    table = Table(title="settings that differ")
    for name in ("setting", *(row.name for row in rows)):
        table.add_column(name, overflow="fold")
    for name, values in differences(histories).items():
        table.add_row(name, *map(text, values))
    return table


def write_report(
    out: Path, histories: Sequence["RunHistory"], rows: Sequence["Row"], limit: float | None
) -> Path:
    """Writes the page and its numbers, each complete or not at all; returns the page's path.

    Raises:
        UserError: `out` cannot be written.
    """
    from vla_jax.reporting.comparison_page import as_json, comparison_html, curve_figures
    from vla_jax.reporting.page import write_figures

    report = out if out.suffix == ".html" else out / "comparison.html"
    figures = curve_figures(histories, limit)
    contents = {
        report.with_suffix(".json"): json.dumps(as_json(histories, rows), indent=1, allow_nan=False),
        report: comparison_html(histories, rows, limit, figures),
    }
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            replace_text(path, content)
        write_figures(report.with_name(f"{report.stem}_figures"), figures)
    except OSError as error:
        raise UserError(f"cannot write the report to {report}: {error.strerror or error}") from error
    return report


COMMAND = cli.Command("compare", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
