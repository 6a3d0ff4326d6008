"""`python -m experiments.to_lerobot DATA_OR_EPISODES --out DIR`: publishes a data set in LeRobot's format."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from experiments import cli
from vla_jax.publishing.settings import PublishOptions

DESCRIPTION = """Writes a prepared data set, or recorded episodes of any format, as a LeRobot data set, v3.0: rows in
parquet, a video for each camera, statistics, tasks and a data card. A row is a control tick. Interrupted, the same
command goes on where it was."""


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA_OR_EPISODES")]
    """Prepared data set (see `prepare`), or a folder of recorded episodes, which are then read by its defaults."""
    out: Path
    """Folder to write; it must not exist yet."""
    options: Annotated[PublishOptions, tyro.conf.arg(name="")] = field(default_factory=PublishOptions)
    workers: int = 0
    """Processes that encode episodes; 0 takes one per processor."""


def main(arguments: Arguments) -> None:
    """Writes the data set and says what is in it."""
    from experiments.data import num_processors, open_or_prepare
    from vla_jax.publishing.lerobot import publish

    workers = arguments.workers or num_processors()
    with open_or_prepare(arguments.data, sensor=True, num_workers=workers) as dataset:
        result = publish(dataset, arguments.out, arguments.options, workers)
    for line in result.left_out:
        print(f"left out: {line}")
    print(f"{result.path}: {result.num_episodes} episodes, {result.num_rows} rows")


COMMAND = cli.Command("to_lerobot", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
