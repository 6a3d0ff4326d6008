"""What `experiments.benchmarks.data` measures: one set of episodes fed in several ways, copied, and opened."""

import contextlib
import multiprocessing
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments.benchmarks.recorded_episodes import EpisodeShape, write_episodes
from experiments.benchmarks.timing import Timing, in_turn, seconds_per_item, time_in_turn
from experiments.benchmarks.workspace import Workspace, make_workspace, pack
from vla_jax.dataset.batches import ENDLESS, BatchLoader
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.training.feeding import make_feed, prefetched
from vla_jax.training.sharding import make_mesh

FeedName = Literal["host", "host-to-device", "device"]

VL_WIDTH = 2048
# Enough batches that none is still in a processor's cache when it is copied again.
COPIED_BYTES = 256 << 20
OPENINGS_PER_ROUND = 3
REFERENCE_BATCH_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class FeedTiming(Timing):
    """How fast one side delivers batches. workers: its threads or processes; batch_bytes: None for other content."""

    sensor_length: int
    workers: int
    batch_bytes: int | None

    @property
    def mb_per_s(self) -> float | None:
        """10⁶ bytes of batches per second."""
        return None if self.batch_bytes is None else self.batch_bytes / self.median_s / 1e6

    def figures(self) -> dict[str, Any]:
        """Adds the bytes per second."""
        return super().figures() | {"mb_per_s": self.mb_per_s}


@dataclass(frozen=True)
class Side:
    """A way to get batches. open: gives them for one round; warm_up, at_least: see `seconds_per_item`."""

    name: str
    workers: int
    batch_size: int
    open: Callable[[], AbstractContextManager[Iterator[Any]]]
    warm_up: int
    at_least: int = 1
    is_ours: bool = True


class Feeding:
    """A set of episodes whose sensor windows have `sensor_length` rows, and the sides that feed it.

    Windows of 650 rows overlap as the lab's do; shorter ones abut.
    """

    def __init__(
        self, root: Path, sensor_length: int, num_episodes: int, seconds: float, batch_size: int
    ) -> None:
        shape = EpisodeShape(
            seconds=seconds,
            image_size=(64, 48),
            window_rows=sensor_length,
            windows_hz=5.6 if sensor_length >= 650 else 650 / sensor_length,
        )
        self.sensor_length = sensor_length
        self.batch_size = batch_size
        self.workspace = make_workspace(root, num_episodes, shape, width=VL_WIDTH, workers=2)
        self._dataset = self.workspace.dataset()
        self._features = self.workspace.features(self._dataset)

    def time(self, sides: list[Side], *, rounds: int, seconds: float) -> list[FeedTiming]:
        """Times sides in turn, each at least `seconds` in all its rounds together."""

        def measure(side: Side) -> float:
            with side.open() as batches:
                return seconds_per_item(
                    batches, seconds=seconds / rounds, warm_up=side.warm_up, at_least=side.at_least
                )

        measured = in_turn({side: lambda side=side: measure(side) for side in sides}, rounds)
        batch_bytes = _num_bytes(self._loader().batch(0))
        return [
            FeedTiming(
                case=f"t{self.sensor_length}",
                side=side.name,
                seconds=values,
                amount=side.batch_size,
                unit="samples",
                sensor_length=self.sensor_length,
                workers=side.workers,
                batch_bytes=batch_bytes if side.is_ours else None,
            )
            for side, values in measured.items()
        ]

    def copies(self) -> Side:
        """Plain numpy copies of the same batches, from ordinary memory, in one thread."""
        loader = self._loader()
        number = max(2, COPIED_BYTES // _num_bytes(loader.batch(0)))
        sources = [loader.batch(i) for i in range(number)]

        def copied() -> Generator[Any, None, None]:
            while True:
                for source in sources:
                    yield jax.tree.map(np.copy, source)

        return Side("numpy copy", 1, self.batch_size, lambda: contextlib.closing(copied()), warm_up=number)

    def fed(self, feed: FeedName, threads: int) -> Side:
        """Batches read ahead by grain's threads, as training takes them: in the host's memory, or whole on all local
        devices as `--feed host` and `--feed device` bring them there."""
        if feed == "host":
            loader = self._loader(num_threads=threads)
            return Side("host", threads, self.batch_size, lambda: iter(loader), 2 * loader.prefetch)
        mode: Literal["host", "device"] = "device" if feed == "device" else "host"
        mesh = make_mesh(None, 1)
        made = make_feed(mode, self._dataset, self._features, mesh)
        complete = jax.jit(made.complete)
        loader = self._loader(num_threads=threads, resident=made.resident.names)

        @contextlib.contextmanager
        def on_devices() -> Iterator[Iterator[Any]]:
            with iter(loader) as batches:
                # As in training: one transfer ahead of the computation that uses the batch.
                ahead = prefetched(batches, mesh, 0, ENDLESS, lambda waited: None)
                yield (jax.block_until_ready(complete(made.resident, batch)) for _, batch, _ in ahead)

        return Side(
            f"on devices, --feed {mode}", threads, self.batch_size, on_devices, warm_up=2 * loader.prefetch
        )

    def reference(self, workers: int) -> Side:
        """The PyTorch reference's access pattern on the same episodes; its features are one vector per file.

        The batches that workers have ready when the clock starts count for the reference.
        """
        from experiments.benchmarks import reference_feeding

        reference_feeding.write_feature_files(self.workspace, pooled=True)
        samples = reference_feeding.PerSampleFiles(reference_feeding.sample_files(self.workspace))
        loader = reference_feeding.make_loader(
            samples, batch_size=REFERENCE_BATCH_SIZE, workers=workers, on_gpu=False
        )

        def batches() -> Generator[Any, None, None]:
            while True:
                yield from loader

        return Side(
            "reference",
            workers,
            REFERENCE_BATCH_SIZE,
            lambda: contextlib.closing(batches()),
            warm_up=1,
            at_least=6 * max(1, workers),
            is_ours=False,
        )

    def _loader(self, **options: Any) -> BatchLoader:
        return training_loader(self._dataset, self._features, self.batch_size, **options)


def training_loader(
    dataset: PackedDataset, features: FeatureTable, batch_size: int, **options: Any
) -> BatchLoader:
    """Returns what training reads from."""
    return BatchLoader(dataset, features, split="train", batch_size=batch_size, seed=0, **options)


def _num_bytes(batch: Any) -> int:
    return sum(array.nbytes for array in jax.tree.leaves(batch))


def time_opening(folder: Path, number: int, rounds: int) -> list[Timing]:
    """Times opening a set of `number` small episodes, alone and with a look at its sources."""
    shape = EpisodeShape(seconds=2.0, views=1, image_size=(32, 32), window_rows=0)
    write_episodes(folder / "episodes", number, shape)
    data = pack(folder / "episodes", folder / "data", workers=2).path
    sides = {
        "open": lambda: PackedDataset.open(data),
        "open and look for changed recordings": lambda: PackedDataset.open(data).check_sources(),
    }
    return [
        Timing(case=f"{number} episodes", side=side, seconds=seconds, amount=number, unit="episodes")
        for side, seconds in time_in_turn(sides, OPENINGS_PER_ROUND * rounds).items()
    ]


def peak_resident_bytes(
    workspace: Workspace, *, batch_size: int, threads: int, num_batches: int
) -> int | None:
    """Returns the most memory that a fresh process held while it read batches; None where /proc does not tell."""
    if not Path("/proc/self/status").exists():
        return None
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(
            read_batches, (str(workspace.data), str(workspace.cache), batch_size, threads, num_batches)
        )


def read_batches(data: str, cache: str, batch_size: int, threads: int, num_batches: int) -> int:
    """Reads training batches and returns this process's peak resident memory in bytes."""
    dataset = PackedDataset.open(data)
    table = FeatureTable.open(dataset, cache)
    with iter(training_loader(dataset, table, batch_size, num_threads=threads)) as batches:
        for _ in range(num_batches):
            next(batches)
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(peak.split()[1])
