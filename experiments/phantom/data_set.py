"""A set of phantom episodes on disk: numbering, seeds, resuming, worker processes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.phantom.disturbance import Disturbance
from experiments.phantom.episode_writer import write_episode
from experiments.phantom.recording import record_demonstration
from experiments.phantom.simulator import PhantomSimulator
from vla_jax.errors import UserError
from vla_jax.storage.worker_processes import run_jobs

GENERATOR_VERSION = 6
"""Raise it whenever equal seeds no longer give equal files."""

STAGING_NAME = ".partial"
_FIRST_START_TIME = 1_767_225_600.0  # 2026-01-01, so that files do not depend on the clock
_SECONDS_BETWEEN_EPISODES = 60.0


@dataclass(frozen=True)
class DataSetSettings:
    """What, with the episode's number, decides an episode's bytes."""

    seed: int
    image_size: int = 112
    sensorless_fraction: float = 0.2
    disturbed_fraction: float = 0.5
    overlapping_windows: bool = False
    breathing_fraction: float = 0.0

    def __post_init__(self):
        if self.seed < 0:
            raise UserError(f"seed must not be negative, got {self.seed}")
        if not 28 <= self.image_size <= 2048:
            raise UserError(f"image size must be between 28 and 2048 pixels, got {self.image_size}")
        for name in ("sensorless_fraction", "disturbed_fraction", "breathing_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                words = name.replace("_", " ")
                raise UserError(f"{words} must be between 0 and 1, got {getattr(self, name)}")

    def episode_seed(self, index: int) -> np.random.SeedSequence:
        """The random state of one episode, whatever the number of episodes."""
        return np.random.SeedSequence(self.seed, spawn_key=(index,))

    def has_sensor(self, index: int) -> bool:
        """Whether an episode has a sensor: the sensorless ones are spread evenly, from a phase drawn by the seed."""
        return not _is_chosen(index, self.sensorless_fraction, self._phases()[0])

    def is_disturbed(self, index: int) -> bool:
        """Whether the arm is nudged in an episode (`experiments.phantom.disturbance`)."""
        return _is_chosen(index, self.disturbed_fraction, self._phases()[1])

    def breathes(self, index: int) -> bool:
        """Whether the tissue of an episode moves (`experiments.phantom.shift`): as often where the arm is nudged as
        where it is not."""
        share, phase = self.disturbed_fraction, self._phases()[1]
        disturbed_before = _num_chosen(index, share, phase)
        rank = disturbed_before if self.is_disturbed(index) else index - disturbed_before
        return _is_chosen(rank, self.breathing_fraction, self._phases()[2])

    def _phases(self) -> NDArray:
        return np.random.default_rng(self.seed).uniform(size=3)


def _is_chosen(index: int, share: float, phase: float) -> bool:
    """Spreads a share of the numbers evenly."""
    return _num_chosen(index + 1, share, phase) > _num_chosen(index, share, phase)


def _num_chosen(index: int, share: float, phase: float) -> int:
    """How many of the numbers below `index` are chosen."""
    return int(index * share + phase)


def write_episode_of(index: int, *, out: Path, settings: DataSetSettings) -> Path:
    """Simulates and writes episode `index` below `out`; returns its directory, OUT/<Colour>_point/episode_<index>."""
    simulator = PhantomSimulator(
        image_size=settings.image_size,
        has_sensor=settings.has_sensor(index),
        disturbance=Disturbance() if settings.is_disturbed(index) else None,
        shift="breathing" if settings.breathes(index) else "none",
    )
    recording = record_demonstration(simulator, settings.episode_seed(index))
    directory = out / recording.scenario.task / f"episode_{index:05d}"
    write_episode(
        directory,
        out / STAGING_NAME,
        recording,
        start_time=_FIRST_START_TIME + index * _SECONDS_BETWEEN_EPISODES,
        overlapping_windows=settings.overlapping_windows,
        ground_truth=_identity(index, settings),
    )
    return directory


def write_data_set(
    out: Path,
    num_episodes: int,
    settings: DataSetSettings,
    *,
    num_workers: int = 1,
    on_written: Callable[[Path], object] = lambda path: None,
) -> None:
    """Writes the episodes 0 … num_episodes-1 that `out` does not hold yet.

    on_written: called with each new episode's directory, in no particular order.

    Raises:
        UserError: `out` cannot be written, or holds episodes of other settings or something else.
    """
    present = find_episodes(out, settings)
    try:
        # Left by a killed run; nothing below it is a finished episode.
        shutil.rmtree(out / STAGING_NAME, ignore_errors=True)
        (out / STAGING_NAME).mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write episodes to {out}: {error.strerror}") from error
    missing = [index for index in range(num_episodes) if index not in present]
    write = partial(write_episode_of, out=out, settings=settings)
    killed = (
        f"a worker process was killed while writing to {out}, perhaps for want of memory; run the same command "
        "again with fewer --workers, it goes on where it stopped"
    )
    try:
        for path in run_jobs(write, [(index,) for index in missing], num_workers, killed=killed):
            on_written(path)
    except OSError as error:
        raise UserError(f"cannot write episodes to {out}: {error}") from error
    shutil.rmtree(out / STAGING_NAME, ignore_errors=True)


def find_episodes(out: Path, settings: DataSetSettings) -> set[int]:
    """Returns the numbers of the finished episodes in `out` (empty when it does not exist).

    Raises:
        UserError: `out` is a file, holds other data, or episodes written with other settings.
    """
    if not out.exists():
        return set()
    if not out.is_dir():
        raise UserError(f"{out} is a file; give a directory for the episodes")
    present = set()
    for task in sorted(path for path in out.iterdir() if path.name != STAGING_NAME):
        episodes = sorted(task.glob("episode_*/metadata.json")) if task.is_dir() else []
        # A task's folder stays when its last episode is thrown away.
        if not episodes and not (task.is_dir() and not any(task.iterdir())):
            raise UserError(
                f"{out} already holds something else ({task.name}); give an empty or new directory"
            )
        for path in episodes:
            try:
                identity = json.loads(path.read_text())["phantom"]
                index, written = identity["episode"], DataSetSettings(**identity["settings"])
                version = identity["generator_version"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path} is not of a phantom episode; give an empty or new directory"
                ) from error
            if (version, written) != (GENERATOR_VERSION, settings):
                raise UserError(
                    f"{path.parent} was written with other settings than these; give another directory, "
                    "or the same --seed and options to add to it"
                )
            present.add(index)
    return present


def _identity(index: int, settings: DataSetSettings) -> dict:
    """What must be equal for an episode on disk to be the one that would be written."""
    return {"generator_version": GENERATOR_VERSION, "episode": index, "settings": asdict(settings)}
