"""The PyTorch reference's way to feed its training, written from its description: files are opened for each sample.

A torch DataLoader with worker processes; each sample loads its episode's whole sensor file to take one window out of
it, and one feature file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from experiments.benchmarks.recorded_episodes import SENSOR_FILE
from experiments.benchmarks.workspace import Workspace

PREFETCHED = 2  # Batches that each worker prepares ahead: PyTorch's own default.


@dataclass(frozen=True)
class SampleFiles:
    """Where one sample's data lies. window: number of its window in the sensor file; actions: (8, 7) f32."""

    sensor_file: str
    window: int
    feature_file: str
    actions: np.ndarray


class PerSampleFiles(Dataset):
    """Opens files for each sample."""

    def __init__(self, samples: Sequence[SampleFiles]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = self._samples[index]
        windows = np.load(sample.sensor_file)["data"]
        return {
            "sensor": torch.from_numpy(windows[sample.window].astype(np.float32)),
            "vl": torch.load(sample.feature_file, weights_only=True),
            "actions": torch.from_numpy(sample.actions),
        }


def write_feature_files(workspace: Workspace, *, pooled: bool) -> None:
    """Writes one feature file per record, as the reference's cache has them.

    pooled: the mean over a record's slots, which is what the reference keeps; else all slots, for a network that is to
    see what ours sees.
    """
    workspace.feature_files.mkdir()
    dataset = workspace.dataset()
    table = workspace.features(dataset)
    for record in dataset.required_records().tolist():
        (values,), _ = table.gather(np.array([record]))
        kept = values.astype(np.float32).mean(axis=0).astype(values.dtype) if pooled else values
        torch.save(torch.from_numpy(kept), workspace.feature_files / f"{record}.pt")


def sample_files(workspace: Workspace) -> list[SampleFiles]:
    """Returns where the reference would find each training sample. A sample's window is the newest recorded one."""
    dataset = workspace.dataset()
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
            SampleFiles(
                str(path),
                max(0, int(window)),
                str(workspace.feature_files / f"{records[row]}.pt"),
                actions[row],
            )
            for row, window in zip(here, windows, strict=True)
        ]
    return samples


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
