"""The PyTorch reference's way to feed its training, written from its description: files are opened for each sample.

A torch DataLoader with worker processes; each sample loads its episode's whole sensor file to take one window out of
it, and one feature file.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


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


def write_features(folder: Path, names: Sequence[str], width: int) -> list[str]:
    """Writes one file with a vector of `width` float32 per name and returns their paths."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    paths = []
    for name in names:
        path = folder / f"{name}.pt"
        torch.save(torch.randn(width, generator=generator), path)
        paths.append(str(path))
    return paths


def samples_per_second(
    samples: Sequence[SampleFiles], *, batch_size: int, workers: int, seconds: float
) -> float:
    """Returns the rate after the first batch, over at least `seconds` and several batches of each worker.

    The batches that workers have ready when the clock starts count for the reference.
    """
    loader = DataLoader(
        PerSampleFiles(samples),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        # A fork would copy the locks of the threads that JAX has started here.
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(0),
    )
    num_batches, least = 0, 6 * max(1, workers)
    begun = None
    while True:
        for _ in loader:
            now = time.perf_counter()
            if begun is None:
                begun = now
                continue
            num_batches += 1
            if now - begun >= seconds and num_batches >= least:
                return num_batches * batch_size / (now - begun)
