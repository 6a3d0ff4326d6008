"""What `experiments.benchmarks.data` measures: one set of episodes packed, fed, copied and opened."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments.benchmarks.recorded_episodes import EpisodeShape, write_episodes
from feature_cache.store import ShardWriter
from vla_jax.contracts.observation import Batch
from vla_jax.contracts.provenance import Provenance
from vla_jax.dataset.batches import ENDLESS, BatchLoader
from vla_jax.dataset.feature_table import FeatureTable, record_keys
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.dataset.preparation import PrepareOptions, prepare
from vla_jax.training.feeding import FeedMode, make_feed, prefetched
from vla_jax.training.sharding import make_mesh

VL_WIDTH = 2048
GRID = 2
# Enough batches that none is still in a processor's cache when it is copied again.
COPIED_BYTES = 256 << 20
ROUNDS_OF_OPENING = 7


@dataclass(frozen=True)
class Case:
    """A packed data set with its features, and the recordings it was made of."""

    steps: int
    dataset: PackedDataset
    cache: Path
    episodes: list[Path]


@dataclass(frozen=True)
class Rate:
    """How fast one side delivers samples. workers: its threads or processes; mb_per_s: of batches' bytes."""

    side: str
    steps: int
    workers: int
    samples_per_s: float
    mb_per_s: float | None


def make_case(folder: Path, steps: int, num_episodes: int, seconds: float) -> Case:
    """Records, packs and exports made-up episodes whose sensor windows have `steps` rows.

    Windows of 650 rows overlap as the lab's do; shorter ones abut. Features are of the default kind, 2×2 cells for
    each of five views and the text, 2048 wide; pictures are small, for no side looks at them.
    """
    overlapping = steps >= 650
    shape = EpisodeShape(
        seconds=seconds,
        image_size=(64, 48),
        window_rows=steps,
        windows_hz=5.6 if overlapping else 650 / steps,
    )
    episodes = write_episodes(folder / "episodes", num_episodes, shape)
    options = PrepareOptions(sensor_window_size=steps, num_workers=2)
    dataset = prepare([str(folder / "episodes")], folder / "data", options).dataset
    provenance = Provenance("benchmark", "made up", None, {}, "none", pooling="grid", grid=GRID)
    required = dataset.required_records()
    writer = ShardWriter(folder / "cache", provenance)
    slots = GRID**2 * len(dataset.meta.views) + 1
    values = np.random.default_rng(0).standard_normal((slots, VL_WIDTH), np.float32)
    for key in dict.fromkeys(record_keys(dataset, required, provenance)):
        writer.add(key, values)
    writer.flush()
    return Case(steps, dataset, folder / "cache", episodes)


def host_rate(case: Case, *, batch_size: int, threads: int, seconds: float) -> Rate:
    """Times batches read ahead by grain's threads, as training takes them."""
    table = FeatureTable.open(case.dataset, case.cache)
    loader = BatchLoader(
        case.dataset, table, split="train", batch_size=batch_size, seed=0, num_threads=threads
    )
    with iter(loader) as batches:
        batches_per_s, num_bytes = _batches_per_second(batches, seconds, warm_up=2 * loader.prefetch)
    return Rate("host", case.steps, threads, batches_per_s * batch_size, batches_per_s * num_bytes / 1e6)


def on_device_rate(case: Case, mode: FeedMode, *, batch_size: int, threads: int, seconds: float) -> Rate:
    """Times whole batches on all local devices, fed as `--feed host` or `--feed device` feeds them."""
    table = FeatureTable.open(case.dataset, case.cache)
    mesh = make_mesh(None, 1)
    feed = make_feed(mode, case.dataset, table, mesh)
    complete = jax.jit(feed.complete)
    loader = BatchLoader(
        case.dataset,
        table,
        split="train",
        batch_size=batch_size,
        seed=0,
        num_threads=threads,
        resident=feed.resident.names,
    )

    def whole_batches(batches: Iterator[Batch]) -> Iterator[Batch]:
        # As in training: one transfer ahead of the computation that uses the batch.
        for _, batch, _ in prefetched(batches, mesh, 0, ENDLESS, lambda waited: None):
            yield jax.block_until_ready(complete(feed.resident, batch))

    with iter(loader) as batches:
        batches_per_s, num_bytes = _batches_per_second(
            whole_batches(batches), seconds, warm_up=2 * loader.prefetch
        )
    side = f"on devices, --feed {mode}"
    return Rate(side, case.steps, threads, batches_per_s * batch_size, batches_per_s * num_bytes / 1e6)


# Ways to feed: batches in the host's memory, and whole on the devices from either place. Called as `host_rate` is.
FEEDS: dict[str, Callable[..., Rate]] = {
    "host": host_rate,
    "host-to-device": partial(on_device_rate, mode="host"),
    "device": partial(on_device_rate, mode="device"),
}


def copy_rate(case: Case, *, batch_size: int, seconds: float) -> Rate:
    """Times plain numpy copies of the same batches, from ordinary memory, in one thread."""
    table = FeatureTable.open(case.dataset, case.cache)
    loader = BatchLoader(case.dataset, table, split="train", batch_size=batch_size, seed=0)
    first = loader.batch(0)
    number = max(2, COPIED_BYTES // sum(array.nbytes for array in jax.tree.leaves(first)))
    sources = [first, *(loader.batch(i) for i in range(1, number))]

    def copies() -> Iterator[Batch]:
        while True:
            for source in sources:
                yield jax.tree.map(np.copy, source)

    batches_per_s, num_bytes = _batches_per_second(copies(), seconds, warm_up=number)
    return Rate("numpy copy", case.steps, 1, batches_per_s * batch_size, batches_per_s * num_bytes / 1e6)


def _batches_per_second(batches: Iterator[Batch], seconds: float, warm_up: int) -> tuple[float, int]:
    """Returns the rate and a batch's bytes."""
    for _ in range(warm_up):
        batch = next(batches)
    num_bytes = sum(array.nbytes for array in jax.tree.leaves(batch))
    count, begun = 0, time.perf_counter()
    while True:
        batch = next(batches)
        count += 1
        elapsed = time.perf_counter() - begun
        if elapsed >= seconds:
            return count / elapsed, num_bytes


def reference_rate(case: Case, *, batch_size: int, workers: int, seconds: float) -> Rate:
    """Times the PyTorch reference's access pattern on the same episodes; its features are one vector per file."""
    from experiments.benchmarks import reference_feeding as reference

    ticks = case.dataset.sample_ticks("train")
    used, of_tick = np.unique(case.dataset.record_index(ticks), return_inverse=True)
    folder = case.cache.with_name("reference-features")
    files = reference.write_features(folder, [f"record_{i}" for i in used.tolist()], VL_WIDTH)
    counts: dict[str, int] = {}
    for episode in case.episodes:
        with np.load(episode / "sensor_data.npz") as stored:
            counts[str(episode)] = len(stored["timestamps"])
    samples = []
    for tick, record in zip(ticks.tolist(), of_tick.tolist(), strict=True):
        entry = case.dataset.episodes[int(case.dataset.ticks.episode[tick])]
        window = min(tick - entry.tick_start, counts[entry.path] - 1)
        samples.append(
            reference.SampleFiles(
                f"{entry.path}/sensor_data.npz",
                window,
                files[record],
                case.dataset.actions(np.array([tick]))[0],
            )
        )
    rate = reference.samples_per_second(samples, batch_size=batch_size, workers=workers, seconds=seconds)
    return Rate("reference", case.steps, workers, rate, None)


def opening_seconds(folder: Path, number: int) -> tuple[float, float]:
    """Returns the median time to open a set of `number` small episodes, alone and with a look at its sources."""
    shape = EpisodeShape(seconds=2.0, views=1, image_size=(32, 32), window_rows=0)
    write_episodes(folder / "episodes", number, shape)
    data = prepare([str(folder / "episodes")], folder / "data", PrepareOptions(num_workers=2)).dataset.path
    alone, checked = [], []
    for _ in range(ROUNDS_OF_OPENING):
        begun = time.perf_counter()
        dataset = PackedDataset.open(data)
        alone.append(time.perf_counter() - begun)
        dataset.check_sources()
        checked.append(time.perf_counter() - begun)
    return statistics.median(alone), statistics.median(checked)


def peak_resident_bytes(case: Case, *, batch_size: int, threads: int, num_batches: int) -> int | None:
    """Returns the most memory that a fresh process held while it read batches; None where /proc does not tell."""
    if not Path("/proc/self/status").exists():
        return None
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(
            read_batches, (str(case.dataset.path), str(case.cache), batch_size, threads, num_batches)
        )


def read_batches(data: str, cache: str, batch_size: int, threads: int, num_batches: int) -> int:
    """Reads training batches and returns this process's peak resident memory in bytes."""
    dataset = PackedDataset.open(data)
    table = FeatureTable.open(dataset, cache)
    loader = BatchLoader(dataset, table, split="train", batch_size=batch_size, seed=0, num_threads=threads)
    with iter(loader) as batches:
        for _ in range(num_batches):
            next(batches)
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(peak.split()[1])
