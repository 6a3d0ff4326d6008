"""`python -m experiments.inspect DATA`: shows what a packed data set holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.console import make_console, print_table
from experiments.data import open_dataset
from vla_jax.errors import UserError
from vla_jax.reporting.page import Cell
from vla_jax.storage.replacing import replace_text

if TYPE_CHECKING:
    from vla_jax.reporting.inspection import Inspection

DESCRIPTION = """Shows what a packed data set holds: counts, hours and rates per source, what is missing, how old what
the samples see is, prompts, and values before and after normalisation; of some episodes the samples too.

With --out also as an HTML page, with camera views, force, A-scans, actions and ages over time.
The same in a notebook: experiments/inspect.ipynb."""


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Packed data set, written by `python -m experiments.prepare`."""
    episode: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME …]")] = ()
    """Episodes to show; by default one of each source, at most three."""
    samples: int = 4
    """Samples to show of each, spread evenly."""
    out: Path | None = None
    """HTML file to write."""
    tokenizer: Path | None = None
    """A backbone's folder, or its tokenizer.json: shows the prompts' tokens."""


def main(arguments: Arguments) -> None:
    """Prints the tables and writes the page."""
    import jax

    from vla_jax.reporting.inspection import inspect_dataset, inspection_html
    from vla_jax.reporting.inspection.report import inspection_figures
    from vla_jax.reporting.page import write_figures

    if arguments.samples < 1:
        raise UserError(f"--samples must be at least 1, not {arguments.samples}")
    if arguments.out is not None and not arguments.out.parent.is_dir():
        raise UserError(f"{arguments.out}: there is no folder {arguments.out.parent}")
    # The little arithmetic needs no GPU, which a training run may be using.
    jax.config.update("jax_platforms", "cpu")
    inspection = inspect_dataset(
        open_dataset(arguments.data),
        arguments.episode,
        samples_per_episode=arguments.samples,
        tokenizer=arguments.tokenizer,
    )
    console = make_console()
    print_tables(console, inspection)
    if arguments.out is None:
        return
    figures = inspection_figures(inspection)
    page = inspection_html(inspection, figures)
    try:
        replace_text(arguments.out, page)
        every = [figure for of_section in figures.values() for figure in of_section]
        write_figures(arguments.out.with_name(f"{arguments.out.stem}_figures"), every)
    except OSError as error:
        raise UserError(f"cannot write {arguments.out}: {error.strerror or error}") from error
    console.print(f"report: {arguments.out}", soft_wrap=True, markup=False)


def print_tables(console: Console, inspection: "Inspection") -> None:
    """Prints what the page holds in tables."""
    from vla_jax.reporting.inspection import report

    dataset = inspection.dataset
    _print(console, str(dataset.path), report.SOURCE_HEADER, report.source_rows(inspection.sources))
    _print(
        console,
        "time offsets at the samples' ticks",
        report.OFFSET_HEADER,
        report.offset_rows(inspection.offsets),
    )
    prompts = [
        [prompt.text, str(prompt.episodes), report.prompt_tokens(prompt)] for prompt in inspection.prompts
    ]
    if all(prompt.tokens is None for prompt in inspection.prompts):
        prompts = [row[:2] for row in prompts]
    _print(
        console, "prompts", ("prompt", "episodes", "tokens")[: len(prompts[0])] if prompts else (), prompts
    )
    console.print(report.prompt_note(inspection.prompts), markup=False)
    for view in inspection.episodes:
        entry = dataset.episodes[view.episode]
        title = f"{entry.path}: {entry.format}, {entry.split}, “{entry.instruction}”"
        _print(console, title, report.SAMPLE_HEADER, report.sample_rows(view.samples))
        for note in entry.notes:
            console.print(f"note: {note}", markup=False)
    _print(
        console,
        "before and after normalisation",
        report.NORMALISATION_HEADER,
        report.normalisation_rows(inspection.distributions),
    )


def _print(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, overflow="fold", justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(cell.text if isinstance(cell, Cell) else cell for cell in row))
    # The first columns name the row, and what follows is told in their order.
    print_table(console, table, [str(name) for name in reversed(header[3:])])


COMMAND = cli.Command("inspect", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
