"""Tables on narrow terminals."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from experiments.console import print_table


def shown(width, *, droppable=("ticks", "minutes", "weight")):
    table = Table(title="data")
    for title in ("source", "prompt"):
        table.add_column(title, overflow="fold")
    for title in ("weight", "minutes", "ticks", "samples"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_row(
        "/somewhere/far/away/episodes", "Insert the needle at the yellow point", "1", "12.3", "130000", "999"
    )
    out = io.StringIO()
    print_table(Console(file=out, width=width, force_terminal=False), table, droppable)
    return out.getvalue()


@pytest.mark.parametrize("width", [150, 100, 80, 60, 50])
def test_no_column_is_cut(width):
    text = shown(width)
    assert all(len(line) <= width for line in text.splitlines())
    missing = text.rsplit("not shown, a wider terminal would: ", 1)[1] if "not shown" in text else ""
    for title, value in (("weight", "1"), ("minutes", "12.3"), ("ticks", "130000"), ("samples", "999")):
        if title in missing:
            assert f" {value} " not in text
        else:
            assert f" {title} " in text
            assert f" {value} " in text
    assert "…" not in text


def test_columns_go_in_the_order_given():
    assert "not shown" not in shown(150)
    assert shown(58).rstrip().endswith("would: ticks")
    assert shown(50).rstrip().endswith("would: ticks, minutes")
