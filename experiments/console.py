"""What commands print to: tables that stay whole without a terminal, and lose the least important columns on a narrow
one rather than a piece of each."""

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

# Rich folds everything into 80 columns where there is no terminal to ask.
COLUMNS_WITHOUT_TERMINAL = 150
# Columns that fold are not made narrower than this.
_LEAST_FOLDED = 14


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Returns a console for a command's results, or with `stderr` for what it is doing; `quiet` prints nothing."""
    console = Console(stderr=stderr, highlight=False, quiet=quiet)
    if not console.is_terminal:
        console.width = COLUMNS_WITHOUT_TERMINAL
    return console


def print_table(console: Console, table: Table, droppable: Sequence[str] = ()) -> None:
    """Prints a table, without as many of its columns as the width demands, and says which.

    droppable: titles of columns that may be left out, the least important first.
    """
    left_out = []
    for title in droppable:
        if _least_width(console, table) <= console.width:
            break
        if any(column.header == title for column in table.columns):
            table = _without(table, title)
            left_out.append(title)
    for column in table.columns:
        if column.overflow != "fold":
            column.min_width = _least_width_of(console, column)
    console.print(table, markup=False)
    if left_out:
        console.print(f"not shown, a wider terminal would: {', '.join(left_out)}", markup=False)


def _without(table: Table, title: str) -> Table:
    kept = Table(title=table.title, caption=table.caption, title_justify=table.title_justify)
    kept.rows = table.rows
    for column in table.columns:
        if column.header != title:
            kept.columns.append(dataclasses.replace(column, _index=len(kept.columns)))
    return kept


def _least_width(console: Console, table: Table) -> int:
    """Returns the width below which a table loses something: its columns' with a blank on each side, and the lines."""
    return sum(_least_width_of(console, column) + 3 for column in table.columns) + 1


def _least_width_of(console: Console, column: Column) -> int:
    texts = [column.header, *column.cells]
    least = max(Measurement.get(console, console.options, text).minimum for text in texts)
    if column.no_wrap:
        least = max(Measurement.get(console, console.options, text).maximum for text in texts)
    return min(least, _LEAST_FOLDED) if column.overflow == "fold" else least
