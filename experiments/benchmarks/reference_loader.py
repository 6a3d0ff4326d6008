"""Training samples for PyTorch's `DataLoader`, read in two ways: from files as the reference does, and packed."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vla_jax.data import FeatureTable, PackedDataset, make_batch

SENSOR_FILE = "sensor_data.npz"
NAMES = ("vl", "sensor", "actions", "weight")
SENSOR_WEIGHT = 2.0
PREFETCHED = 2  # Batches that each worker prepares ahead: PyTorch's own default.


def write_feature_files(table: FeatureTable, records: np.ndarray, folder: Path) -> None:
    """Writes one file per record, as the reference's feature cache has them. records: indices of the data set's."""
    folder.mkdir(parents=True)
    for record in records.tolist():
        values, _ = table.gather(np.array([record]))
        torch.save(torch.from_numpy(values[0]), folder / f"{record}.pt")


class ReferenceSamples(Dataset):
    """One sample at a time: its episode's whole sensor file is loaded for one window, and its feature file for one
    vector. Poses, and with them the actions, stay in memory.

    data: packed data set of `windows` episodes whose folders still exist; it says which samples there are.
    """

    def __init__(self, data: Path, features: Path) -> None:
        dataset = PackedDataset.open(data)
        ticks = dataset.sample_ticks("train")
        episodes = dataset.ticks.episode[ticks]
        self._features = features
        self._records = dataset.record_index(ticks)
        self._actions = dataset.actions(ticks)
        self._files = [str(dataset.folder(int(episode)) / SENSOR_FILE) for episode in episodes]
        self._windows = np.empty(len(ticks), np.int64)
        for episode in np.unique(episodes):
            here = episodes == episode
            with np.load(dataset.folder(int(episode)) / SENSOR_FILE) as archive:
                ends = archive["timestamps"]
            newest = np.searchsorted(ends, dataset.ticks.time[ticks[here]], side="right") - 1
            self._windows[here] = np.clip(newest, 0, len(ends) - 1)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        with np.load(self._files[index]) as archive:
            sensor = archive["data"][self._windows[index]]
        features = torch.load(self._features / f"{self._records[index]}.pt", weights_only=True)
        return {
            "vl": features.float(),
            "sensor": torch.from_numpy(sensor.astype(np.float32)),
            "actions": torch.from_numpy(self._actions[index]),
            "weight": torch.tensor(SENSOR_WEIGHT),
        }


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
        weight = np.where(batch["has_sensor"], SENSOR_WEIGHT, 1.0) * batch["confidence"]
        arrays = (batch["vl"], batch["sensor"], batch["actions"], weight.astype(np.float32))
        return {name: torch.from_numpy(array) for name, array in zip(NAMES, arrays, strict=True)}


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
