"""Writes a tiny random Qwen2.5-VL with its processor: `python -m experiments.tiny_backbone OUT`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from experiments import cli
from feature_cache.tiny_backbone import write_tiny_backbone
from vla_jax.errors import UserError
from vla_jax.optional_torch import require

DESCRIPTION = """Writes a tiny, randomly initialised Qwen2.5-VL with its processor, which loads like the real one, for
demos and tests without a model hub."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Directory to write; an older backbone in it is replaced."""
    seed: int = 0
    """Seed of the random weights; the same seed gives the same files."""


def main(arguments: Arguments) -> None:
    require("tiny_backbone", "torch", "transformers", "tokenizers")
    if not 0 <= arguments.seed < 2**63:
        raise UserError(f"--seed {arguments.seed} is impossible; give a number from 0 to below 2^63")
    out = write_tiny_backbone(arguments.out, seed=arguments.seed)
    print(f"tiny Qwen2.5-VL written: {out}")


COMMAND = cli.Command("tiny_backbone", Arguments, DESCRIPTION, main)
if __name__ == "__main__":
    COMMAND.run()
