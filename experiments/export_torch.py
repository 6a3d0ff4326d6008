"""`python -m experiments.export_torch RUN OUT.pt`: turns a checkpoint into one of the PyTorch reference's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments import cli

DESCRIPTION = """Writes a policy as a checkpoint that the PyTorch reference loads with `strict=True`. That needs a
network that the reference knows: one imported from it, or trained with `--recipe reference`."""


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Training output directory, or one checkpoint in it."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT.pt")]
    """The `.pt` file to write."""


def main(arguments: Arguments) -> None:
    """Exports and says how much."""
    from vla_jax.reference.conversion import export_checkpoint

    count = export_checkpoint(arguments.run, arguments.out)
    print(f"{count} tensors written to {arguments.out}")


COMMAND = cli.Command("export_torch", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
