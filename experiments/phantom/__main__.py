"""`python -m experiments.phantom OUT`: writes simulated needle insertions as `windows` episodes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments import cli
from experiments.data import num_processors
from experiments.phantom.data_set import DataSetSettings, find_episodes, write_data_set
from vla_jax.errors import UserError
from vla_jax.progress import progress_bar

DESCRIPTION = """Simulates a needle inserted into a layered tissue phantom, guided by a scripted demonstrator, and
writes the insertions as episodes: three views at 5 Hz, poses at 100 Hz, force and OCT A-scans at 650 Hz."""


@dataclass(frozen=True)
class Arguments:
    """What to simulate, and where to."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Directory for the episodes. If it already holds episodes of the same seed and options, only the missing ones are
    written."""
    episodes: int = 40
    """Number of episodes."""
    seed: int = 0
    """Random seed: equal seeds give byte-identical episodes, whatever their number and the number of workers."""
    image_size: int = 112
    """Width and height of the three views, pixels."""
    sensorless_fraction: float = 0.2
    """Fraction of episodes without force and A-scan, between 0 and 1."""
    disturbed_fraction: float = 0.5
    """Fraction of episodes in which the arm is nudged off its course, and comes back. What should have been done is
    recorded beside what happened (corrections.csv)."""
    breathing_fraction: float = 0.0
    """Fraction of episodes in which the tissue moves as a breathing patient's, and the demonstrator with it; as in
    `rollout --shift breathing`."""
    overlapping_windows: bool = False
    """Store the sensor as the lab does: overlapping windows of 650 rows, 5.6 a second (about 90 MB an episode),
    instead of ten windows of 65 rows a second that join without overlap (about 19 MB)."""
    workers: int = 0
    """Worker processes; 0 takes one per processor core, at most 16."""


def main(arguments: Arguments) -> None:
    """Writes the episodes with a progress bar and says what is there."""
    if arguments.episodes < 1:
        raise UserError(f"--episodes must be at least 1, got {arguments.episodes}")
    if arguments.workers < 0:
        raise UserError(f"--workers must not be negative, got {arguments.workers}")
    settings = DataSetSettings(
        seed=arguments.seed,
        image_size=arguments.image_size,
        sensorless_fraction=arguments.sensorless_fraction,
        disturbed_fraction=arguments.disturbed_fraction,
        breathing_fraction=arguments.breathing_fraction,
        overlapping_windows=arguments.overlapping_windows,
    )
    workers = arguments.workers or num_processors()
    num_present = sum(index < arguments.episodes for index in find_episodes(arguments.out, settings))
    with progress_bar(total=arguments.episodes, initial=num_present, unit="episode", desc="phantom") as bar:
        write_data_set(
            arguments.out,
            arguments.episodes,
            settings,
            num_workers=workers,
            on_written=lambda path: bar.update(),
        )
    resumed = f" ({num_present} were already there)" if num_present else ""
    print(f"{arguments.episodes} episodes in {arguments.out}{resumed}")


COMMAND = cli.Command("phantom", Arguments, DESCRIPTION, main)
if __name__ == "__main__":
    COMMAND.run()
