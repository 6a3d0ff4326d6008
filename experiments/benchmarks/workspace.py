"""Made-up episodes in every form that a benchmark reads: recorded, packed, with a feature cache, with feature files.

Everything that the benchmarks know of packing and of the cache is here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.benchmarks.recorded_episodes import EpisodeShape, write_episodes
from feature_cache.store import ShardWriter
from vla_jax.contracts.provenance import Pooling, Provenance
from vla_jax.dataset.feature_table import FeatureTable, record_keys
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.dataset.preparation import PrepareOptions, prepare


@dataclass(frozen=True)
class Workspace:
    """Where the forms of one set of episodes lie, all below `root`."""

    root: Path

    @property
    def episodes(self) -> Path:
        """Root of the recordings."""
        return self.root / "episodes"

    @property
    def data(self) -> Path:
        """The packed data set."""
        return self.root / "data"

    @property
    def cache(self) -> Path:
        """The feature cache, with random features for all records of the data set."""
        return self.root / "cache"

    @property
    def feature_files(self) -> Path:
        """Room for one file per record (`experiments.benchmarks.reference_feeding` writes them)."""
        return self.root / "feature-files"

    def dataset(self) -> PackedDataset:
        """Opens the packed data set."""
        return PackedDataset.open(self.data)

    def features(self, dataset: PackedDataset) -> FeatureTable:
        """Opens the features of the data set."""
        return FeatureTable.open(dataset, self.cache)


def made_up_provenance(name: str, pooling: Pooling = "grid") -> Provenance:
    """Returns an identity for features that no backbone made."""
    return Provenance(name, "made up", None, {}, "", pooling=pooling)


def pack(episodes: Path, data: Path, *, sensor_window_size: int = 65, workers: int) -> PackedDataset:
    """Packs episodes, all of them for training."""
    options = PrepareOptions(val_fraction=0.0, sensor_window_size=sensor_window_size, num_workers=workers)
    return prepare([str(episodes)], data, options).dataset


def make_workspace(
    root: Path, num_episodes: int, shape: EpisodeShape, *, width: int, workers: int
) -> Workspace:
    """Records, packs and exports made-up episodes.

    Features are of the default kind, a grid of cells for each view and the text, `width` wide; no side looks at
    pictures, of which only the identity counts.
    """
    workspace = Workspace(root)
    write_episodes(workspace.episodes, num_episodes, shape)
    dataset = pack(workspace.episodes, workspace.data, sensor_window_size=shape.window_rows, workers=workers)
    provenance = made_up_provenance("benchmark")
    keys = record_keys(dataset, dataset.required_records().tolist(), provenance)
    slots = provenance.grid**2 * shape.views + 1
    _fill_cache(workspace.cache, provenance, keys, slots, width)
    return workspace


def _fill_cache(cache: Path, provenance: Provenance, keys: Sequence[str], slots: int, width: int) -> None:
    """Writes features of random numbers, other ones for each key."""
    rng = np.random.default_rng(0)
    writer = ShardWriter(cache, provenance)
    for key in dict.fromkeys(keys):
        writer.add(key, rng.standard_normal((slots, width), np.float32))
    writer.flush()
