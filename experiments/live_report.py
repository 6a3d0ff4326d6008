"""`python -m experiments.live_report LOG`: shows the log of a live run on one page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments import cli

DESCRIPTION = """Makes a page of the log of a live run: tick jitter, ages by stream, latency, missed ticks, actions and
interventions. It needs no summary: a run that was killed has one too."""


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    log: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="LOG")]
    """The directory that `live --log` wrote, or its ticks.jsonl."""
    out: Path | None = None
    """The page; LOG/report.html by default."""


def main(arguments: Arguments) -> None:
    """Writes the page and says where it is."""
    from vla_jax.reporting.live_page import live_html
    from vla_jax.reporting.live_record import read_live_record
    from vla_jax.storage.replacing import replace_text, writing_to

    log = arguments.log
    record = read_live_record(log)
    out = arguments.out or (log if log.is_dir() else log.parent) / "report.html"
    with writing_to(out):
        replace_text(out, live_html(record, log.resolve().name))
    print(f"report: {out}")


COMMAND = cli.Command("live_report", Arguments, DESCRIPTION, main)
if __name__ == "__main__":
    COMMAND.run()
