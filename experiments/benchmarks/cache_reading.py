"""Cases of the cache benchmark: random gathers of records beside one file per record, and opening a large cache."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from experiments.benchmarks.timing import Timing, clock, time_in_turn
from experiments.benchmarks.workspace import made_up_provenance
from feature_cache.keys import record_key
from feature_cache.store import FeatureStore, ShardWriter
from vla_jax.contracts.provenance import Provenance
from vla_jax.progress import progress_bar

# Calls of a side per round: each takes milliseconds.
READS_PER_ROUND = 10
# Rows of random features; larger caches repeat them, under keys of their own.
BLOCK_ROWS = 8192

InputT = TypeVar("InputT")


def time_reading(folder: Path, records: int, width: int, gathered: int, rounds: int) -> list[Timing]:
    """Times random gathers of `gathered` pooled records out of `records`, all of them in the system's page cache.

    Raises:
        RuntimeError: the two sides read different features.
    """
    provenance, keys = write_cache(folder / "small", records, width)
    store = FeatureStore.open(folder / "small", provenance.name())
    (folder / "files").mkdir()
    for key, features in zip(keys, store.read(keys), strict=True):
        torch.save(torch.from_numpy(features[None].copy()), folder / "files" / f"{key}.pt")

    def load_files(chosen: list[str]) -> np.ndarray:
        files = [folder / "files" / f"{key}.pt" for key in chosen]
        return torch.cat([torch.load(file, weights_only=True) for file in files])[:, 0].numpy()

    draws = _draws(keys, gathered, rounds)
    # A store checks the checksum of each record that it has not read before.
    fresh = [FeatureStore.open(folder / "small", provenance.name()) for _ in draws]
    if not np.array_equal(load_files(draws[0]), _gather(store, draws[0])):
        raise RuntimeError("the two sides read different features")
    sides = {
        "torch.load per record": _each(draws, load_files),
        "ours, records not read before": _each(
            list(zip(fresh, draws, strict=True)), lambda pair: _gather(*pair)
        ),
        "ours": _each(draws, lambda chosen: _gather(store, chosen)),
    }
    return [
        Timing(case="read", side=side, seconds=seconds, amount=gathered, unit="records")
        for side, seconds in time_in_turn(sides, len(draws)).items()
    ]


def time_opening(
    folder: Path, records: int, width: int, gathered: int, rounds: int
) -> tuple[list[Timing], dict[str, Any]]:
    """Times opening a cache of so many pooled records, and random gathers from it; warm, that is in the page cache.

    Returns the timings, and what else there is to know.
    """
    cache = folder / "large"
    writing, (provenance, keys) = clock(lambda: write_cache(cache, records, width))
    opening = time_in_turn({"ours": lambda: FeatureStore.open(cache, provenance.name())}, rounds)["ours"]
    store = FeatureStore.open(cache, provenance.name())
    draws = _draws(keys, gathered, rounds)
    timings = [
        Timing(case="open", side=f"{records} records", seconds=opening, amount=records, unit="records")
    ]
    # The same draws twice: only the first time are their checksums compared.
    for side in ("records not read before", "records read before"):
        gather = _each(draws, lambda chosen: _gather(store, chosen))
        seconds = time_in_turn({side: gather}, len(draws))[side]
        timings.append(Timing(case="gather", side=side, seconds=seconds, amount=gathered, unit="records"))
    return timings, {
        "shards": len(store.shard_paths),
        "gigabytes": sum(path.stat().st_size for path in store.shard_paths) / 1e9,
        "write_seconds": writing,
        "content": f"{min(records, BLOCK_ROWS)} rows of random numbers, repeated under keys of their own",
    }


def write_cache(cache: Path, records: int, width: int) -> tuple[Provenance, list[str]]:
    """Writes pooled records of random numbers by the exporter's writer; returns provenance and keys."""
    provenance = made_up_provenance("random numbers", pooling="mean")
    digest = provenance.digest()
    block = np.random.default_rng(0).normal(size=(min(records, BLOCK_ROWS), width)).astype(np.float16)
    keys = [record_key(digest, str(i), []) for i in range(records)]
    writer = ShardWriter(cache, provenance)
    for i, key in enumerate(progress_bar(keys, desc="write", unit="record")):
        row = i % len(block)
        writer.add(key, block[row : row + 1])
    writer.flush()
    return provenance, keys


def _draws(keys: list[str], gathered: int, rounds: int) -> list[list[str]]:
    draw = random.Random(0)
    return [draw.sample(keys, gathered) for _ in range(rounds * READS_PER_ROUND)]


def _gather(store: FeatureStore, keys: list[str]) -> np.ndarray:
    return np.concatenate(store.read(keys))


def _each(inputs: Iterable[InputT], call: Callable[[InputT], Any]) -> Callable[[], Any]:
    """Returns a function that calls with the next of the inputs each time."""
    remaining = iter(inputs)
    return lambda: call(next(remaining))
