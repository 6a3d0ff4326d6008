"""Writes a tiny random Qwen2.5-VL with its processor: `python -m experiments.tiny_backbone OUT`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from experiments import cli
from feature_cache.tiny_backbone import write_tiny_backbone


@dataclasses.dataclass(frozen=True)
class Arguments:
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Directory to write; an older backbone in it is replaced."""
    seed: int = 0
    """Seed of the random weights; the same seed gives the same files."""


def main(arguments: Arguments) -> None:
    out = write_tiny_backbone(arguments.out, seed=arguments.seed)
    print(f"tiny Qwen2.5-VL written: {out}")


if __name__ == "__main__":
    cli.run(
        main,
        Arguments,
        name="tiny_backbone",
        description="Writes a tiny, randomly initialised Qwen2.5-VL with its processor, which loads like the "
        "real one, for demos and tests without a model hub.",
    )
