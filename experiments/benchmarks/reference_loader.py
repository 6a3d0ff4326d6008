"""What PyTorch's `DataLoader` reads in the training benchmark: the reference's files, or whole packed batches."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from experiments.benchmarks.recorded_episodes import SENSOR_FILE
from experiments.benchmarks.reference_feeding import SampleFiles
from vla_jax.dataset.batches import make_batch
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset

PREFETCHED = 2  # Batches that each worker prepares ahead: PyTorch's own default.


def write_feature_files(table: FeatureTable, records: np.ndarray, folder: Path) -> None:
    """Writes one file per record, as the reference's feature cache has them. records: indices of the data set's."""
    folder.mkdir(parents=True)
    for record in records.tolist():
        values, _ = table.gather(np.array([record]))
        torch.save(torch.from_numpy(values[0]), folder / f"{record}.pt")


def sample_files(data: Path, features: Path) -> list[SampleFiles]:
    """Returns where the reference would find each training sample of a packed data set.

    data: packed from `windows` episodes whose folders still exist. A sample's window is the newest recorded one.
    """
    dataset = PackedDataset.open(data)
    ticks = dataset.sample_ticks("train")
    episodes = dataset.ticks.episode[ticks]
    records, actions = dataset.record_index(ticks), dataset.actions(ticks)
    samples: list[SampleFiles] = []
    for episode in np.unique(episodes).tolist():
        here = np.flatnonzero(episodes == episode)
        path = dataset.folder(episode) / SENSOR_FILE
        with np.load(path) as archive:
            ends = archive["timestamps"]
        windows = np.searchsorted(ends, dataset.ticks.time[ticks[here]], side="right") - 1
        samples += [
            SampleFiles(str(path), max(0, int(window)), str(features / f"{records[row]}.pt"), actions[row])
            for row, window in zip(here, windows, strict=True)
        ]
    return samples


class PackedBatches(Dataset):
    """Whole batches of a packed data set, as our own loader makes them. Opened in the worker that reads."""

    def __init__(self, data: Path, cache: Path, batch_size: int) -> None:
        self._data, self._cache, self._batch_size = data, cache, batch_size
        self._ticks = PackedDataset.open(data).sample_ticks("train")
        self._opened: tuple[PackedDataset, FeatureTable] | None = None

    def __len__(self) -> int:
        return max(1, len(self._ticks) // self._batch_size)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if self._opened is None:
            dataset = PackedDataset.open(self._data)
            self._opened = dataset, FeatureTable.open(dataset, self._cache)
        chosen = np.random.default_rng(index).choice(self._ticks, self._batch_size)
        batch = make_batch(*self._opened, chosen)
        arrays = {
            "vl": batch.observation.vl,
            "sensor": batch.observation.sensor,
            "actions": batch.actions,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def make_loader(dataset: Dataset, *, batch_size: int | None, workers: int, on_gpu: bool) -> DataLoader:
    """Returns shuffled batches, read ahead by worker processes. batch_size: None where an item is a batch."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=True,
        drop_last=batch_size is not None,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCHED if workers else None,
        pin_memory=on_gpu,
        # A copy of a process with threads (JAX is imported) can hang.
        multiprocessing_context="forkserver" if workers else None,
    )
