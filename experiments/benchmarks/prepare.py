"""`python -m experiments.benchmarks.prepare`: how fast episodes are packed, beside how fast their files can be read."""

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.table import Table

from experiments import cli
from experiments.benchmarks.recorded_episodes import SENSOR_FILE, EpisodeShape, write_episodes
from experiments.benchmarks.timing import machine, scratch_folder
from experiments.console import make_console
from vla_jax.dataset.preparation import PrepareOptions, prepare
from vla_jax.errors import UserError

DESCRIPTION = """Writes episodes of the lab's sizes (18 s, overlapping sensor windows of 650 rows, five views at 5 Hz),
packs them with `prepare`, and times on the same files, with as many processes, the bare reading of them: all sensor
arrays with numpy.load, which inflates them, and all pictures decoded in full and hashed. Everything comes from the page
cache. MB/s are of source arrays: the sensor arrays' size in memory. `prepare` can be faster than the bare reading,
since it decodes pictures at an eighth of their size."""


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    episodes: int = 6
    """Episodes in each set (260 MB of sensor arrays and 450 pictures each)."""
    seconds: float = 18.0
    """Length of an episode."""
    workers: int = 0
    """Processes; 0 takes one per processor."""
    rounds: int = 3
    """How often each is timed; the table shows medians."""
    scratch: Path | None = None
    """Where to write the episodes; a temporary folder by default."""
    out: Path | None = None
    """JSON file for the figures."""


@dataclass(frozen=True)
class Rates:
    """Medians over the rounds, seconds; MB are of 10⁶ bytes."""

    episodes: str
    source_mb: float
    file_mb: float
    pictures: int
    prepare_s: float
    load_s: float
    pictures_s: float

    @property
    def prepare_mb_per_s(self) -> float:
        """Source arrays packed per second."""
        return self.source_mb / self.prepare_s

    @property
    def bare_mb_per_s(self) -> float:
        """The same if `prepare` did nothing but read, inflate, decode in full and hash."""
        return self.source_mb / (self.load_s + self.pictures_s)


def main(arguments: Arguments) -> None:
    """Times both kinds of episodes and prints the table."""
    for name in ("episodes", "rounds"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(arguments, name)}")
    workers = arguments.workers or len(os.sched_getaffinity(0))
    console = make_console()
    conditions = {
        **machine(),
        "workers": workers,
        "numpy": np.__version__,
    }
    console.print(conditions)
    results = []
    with scratch_folder(arguments.scratch) as scratch:
        for name, compressed in (("uncompressed", False), ("compressed", True)):
            console.print(f"writing {arguments.episodes} {name} episodes …")
            root = scratch / name
            shape = EpisodeShape(seconds=arguments.seconds, compressed=compressed)
            folders = write_episodes(root, arguments.episodes, shape)
            results.append(measure(name, root, folders, workers, arguments.rounds))
            shutil.rmtree(root)
    table = Table("sensor files", "source MB", "files MB", "pictures")
    for title in ("prepare s", "np.load s", "decode + hash s", "prepare MB/s", "bare MB/s", "of bare"):
        table.add_column(title, justify="right")
    for rates in results:
        table.add_row(
            rates.episodes,
            f"{rates.source_mb:.0f}",
            f"{rates.file_mb:.0f}",
            str(rates.pictures),
            f"{rates.prepare_s:.2f}",
            f"{rates.load_s:.2f}",
            f"{rates.pictures_s:.2f}",
            f"{rates.prepare_mb_per_s:.0f}",
            f"{rates.bare_mb_per_s:.0f}",
            f"{100 * rates.prepare_mb_per_s / rates.bare_mb_per_s:.0f} %",
        )
    console.print(table)
    if arguments.out is not None:
        rows = [
            {**asdict(r), "prepare_mb_per_s": r.prepare_mb_per_s, "bare_mb_per_s": r.bare_mb_per_s}
            for r in results
        ]
        arguments.out.write_text(json.dumps({"conditions": conditions, "results": rows}, indent=2))


def measure(name: str, root: Path, folders: Sequence[Path], workers: int, rounds: int) -> Rates:
    """Times `prepare` and the bare reading of the same files, in turns."""
    pictures = sorted(str(path) for folder in folders for path in (folder / "images").rglob("*.jpg"))
    sensors = [str(folder / SENSOR_FILE) for folder in folders]
    batches = [pictures[i::workers] for i in range(workers)]
    seconds: dict[str, list[float]] = {"prepare": [], "load": [], "pictures": []}
    source_bytes = 0
    for round_ in range(rounds):
        out = root.with_name(f"{root.name}-{round_}")
        seconds["prepare"].append(
            _seconds(lambda out=out: prepare([str(root)], out, PrepareOptions(num_workers=workers)))
        )
        shutil.rmtree(out)
        # A pool of its own each time, as `prepare` starts one.
        begun = time.perf_counter()
        source_bytes = sum(_map(load_sensor, sensors, workers))
        seconds["load"].append(time.perf_counter() - begun)
        seconds["pictures"].append(_seconds(lambda: _map(decode_and_hash, batches, workers)))
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    return Rates(
        episodes=name,
        source_mb=source_bytes / 1e6,
        file_mb=sum(os.path.getsize(path) for path in (*sensors, *pictures)) / 1e6,
        pictures=len(pictures),
        prepare_s=medians["prepare"],
        load_s=medians["load"],
        pictures_s=medians["pictures"],
    )


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


def _map(function: Callable, items: Sequence, workers: int) -> list[int]:
    if workers == 1:
        return [function(item) for item in items]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(function, items))


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


COMMAND = cli.Command("benchmarks.prepare", Arguments, DESCRIPTION, main)

if __name__ == "__main__":
    COMMAND.run()
