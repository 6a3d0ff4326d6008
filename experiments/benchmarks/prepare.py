"""`python -m experiments.benchmarks.prepare`: how fast episodes are packed, beside how fast their files can be read."""

import hashlib
import io
import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from experiments import cli
from experiments.benchmarks.frame import Frame, FrameArguments, require_positive, scratch_folder, timing_table
from experiments.benchmarks.machine import conditions, processors
from experiments.benchmarks.recorded_episodes import SENSOR_FILE, EpisodeShape, write_episodes
from experiments.benchmarks.timing import Timing, clock, in_turn
from experiments.benchmarks.workspace import pack

DESCRIPTION = """Writes episodes of the lab's sizes (18 s, overlapping sensor windows of 650 rows, five views at 5 Hz),
packs them with `prepare`, and times on the same files, with as many processes, the bare reading of them: all sensor
arrays with numpy.load, which inflates them, and all pictures decoded in full and hashed. Everything comes from the page
cache. MB/s are of source arrays: the sensor arrays' size in memory. `prepare` can be faster than the bare reading,
since it decodes pictures at an eighth of their size."""

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, kw_only=True)
class Arguments(FrameArguments):
    """Options of the command."""

    rounds: int = 3
    """How often each is timed, in turn; the table shows medians."""
    episodes: int = 6
    """Episodes in each set (260 MB of sensor arrays and 450 pictures each)."""
    seconds: float = 18.0
    """Length of an episode."""
    workers: int = 0
    """Processes; 0 takes one per processor."""
    scratch: Path | None = None
    """Where to write the episodes; a temporary folder by default."""


@dataclass(frozen=True, kw_only=True)
class PackingTiming(Timing):
    """file_mb: size of all files, 10⁶ bytes; pictures: how many of them are pictures."""

    file_mb: float
    pictures: int


def main(arguments: Arguments) -> None:
    """Times both kinds of episodes and prints the table."""
    require_positive(arguments, "episodes", "rounds")
    workers = arguments.workers or processors()
    frame = Frame(arguments, {**conditions("numpy"), "workers": workers})
    timings: list[PackingTiming] = []
    with scratch_folder(arguments.scratch) as scratch:
        for name, compressed in (("uncompressed", False), ("compressed", True)):
            frame.say(f"writing {arguments.episodes} {name} episodes …")
            root = scratch / name
            shape = EpisodeShape(seconds=arguments.seconds, compressed=compressed)
            folders = write_episodes(root, arguments.episodes, shape)
            timings += measure(name, root, folders, workers, arguments.rounds)
            shutil.rmtree(root)
    columns = {"files MB": lambda timing: f"{timing.file_mb:.0f}", "pictures": lambda t: str(t.pictures)}
    frame.finish(timings, timing_table(timings, versus="vs bare reading", columns=columns))


def measure(case: str, root: Path, folders: Sequence[Path], workers: int, rounds: int) -> list[PackingTiming]:
    """Times `prepare` and the two parts of the bare reading of the same files; the bare reading is their sum."""
    pictures = sorted(str(path) for folder in folders for path in (folder / "images").rglob("*.jpg"))
    sensors = [str(folder / SENSOR_FILE) for folder in folders]
    batches = [pictures[i::workers] for i in range(workers)]
    source_bytes = sum(map(load_sensor, sensors))

    def pack_all() -> float:
        out = root.with_name(f"{root.name}-packed")
        seconds, _ = clock(lambda: pack(root, out, workers=workers))
        shutil.rmtree(out)
        return seconds

    # A pool of its own each time, as `prepare` starts one.
    sides = {
        "prepare": pack_all,
        "np.load": lambda: clock(lambda: _map(load_sensor, sensors, workers))[0],
        "decode and hash": lambda: clock(lambda: _map(decode_and_hash, batches, workers))[0],
    }
    seconds = in_turn(sides, rounds)
    bare = tuple(map(sum, zip(seconds["np.load"], seconds["decode and hash"], strict=True)))
    return [
        PackingTiming(
            case=case,
            side=side,
            seconds=values,
            amount=source_bytes / 1e6,
            unit="MB",
            file_mb=sum(os.path.getsize(path) for path in (*sensors, *pictures)) / 1e6,
            pictures=len(pictures),
        )
        for side, values in {"bare reading": bare, **seconds}.items()
    ]


def load_sensor(path: str) -> int:
    """Reads all arrays of a sensor file; returns their bytes."""
    with np.load(path, allow_pickle=False) as stored:
        return sum(stored[name].nbytes for name in stored.files)


def decode_and_hash(paths: Sequence[str]) -> int:
    """Reads, decodes and hashes pictures; returns their number."""
    for path in paths:
        data = Path(path).read_bytes()
        hashlib.sha256(data).digest()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    return len(paths)


def _map(function: Callable[[ItemT], int], items: Sequence[ItemT], workers: int) -> list[int]:
    if workers == 1:
        return [function(item) for item in items]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(function, items))


COMMAND = cli.Command("benchmarks.prepare", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
