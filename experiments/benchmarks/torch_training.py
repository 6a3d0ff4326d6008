"""One side of the training benchmark: the heads trained by PyTorch, in a process of its own.

`python -m experiments.benchmarks.torch_training SPEC.json` prints one line of JSON.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from experiments.benchmarks.networks import (
    BETAS,
    CLIP_NORM,
    LEARNING_RATE,
    WEIGHT_DECAY,
    noise_schedule,
    policy_config,
)
from experiments.benchmarks.reference_feeding import PREFETCHED, PerSampleFiles, make_loader, sample_files
from experiments.benchmarks.torch_heads import Policy
from experiments.benchmarks.torch_spec import TorchSpec, TrainingMeasurement
from experiments.benchmarks.workspace import Workspace
from vla_jax.dataset.batches import make_batch
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset

SENSOR_WEIGHT = 2.0


class PackedBatches(Dataset):
    """Whole batches of a packed data set, as our own loader makes them. Opened in the worker that reads."""

    def __init__(self, workspace: Workspace, batch_size: int) -> None:
        self._workspace, self._batch_size = workspace, batch_size
        self._ticks = workspace.dataset().sample_ticks("train")
        self._opened: tuple[PackedDataset, FeatureTable] | None = None

    def __len__(self) -> int:
        return max(1, len(self._ticks) // self._batch_size)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if self._opened is None:
            dataset = self._workspace.dataset()
            self._opened = dataset, self._workspace.features(dataset)
        chosen = np.random.default_rng(index).choice(self._ticks, self._batch_size)
        batch = make_batch(*self._opened, chosen)
        arrays = {"vl": batch.observation.vl, "sensor": batch.observation.sensor, "actions": batch.actions}
        return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


def train(spec: TorchSpec) -> TrainingMeasurement:
    """Trains and returns what an update takes.

    The updates for which the workers had read ahead while the first one was prepared do not count.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    config = policy_config(spec.kind, spec.sensor_length, spec.size)
    torch.manual_seed(0)
    policy = Policy(config).to(device)
    parameters = list(policy.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    if spec.compiled:
        for part in policy.children():
            part.compile()
    cumulative = torch.tensor(noise_schedule(config).alphas_cumprod, device=device)

    def update(batch: dict[str, Tensor]) -> Tensor:
        batch = {name: value.to(device, non_blocking=True).float() for name, value in batch.items()}
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            features = policy.encode(batch["sensor"])
            if spec.kind == "diffusion":
                t = torch.randint(len(cumulative), (len(batch["actions"]),), device=device)
                noise = torch.randn_like(batch["actions"])
                signal = cumulative[t, None, None]
                noisy = signal.sqrt() * batch["actions"] + (1 - signal).sqrt() * noise
                prediction, target = policy.action_expert(noisy, t, batch["vl"], features), noise
            else:
                target = batch["actions"]
                prediction = policy.action_expert(batch["vl"], target, features)[0]
        error = (prediction.float() - target).square().mean(dim=(1, 2))
        loss = SENSOR_WEIGHT * error.mean()  # Every sample has a sensor and full confidence.
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        return loss.detach()

    policy.train()
    loader = _loader(spec, on_gpu)
    read_ahead = spec.workers * PREFETCHED + 1
    batches = _endless(loader)
    began = time.perf_counter()
    update(next(batches)).item()
    first = time.perf_counter() - began
    for _ in range(read_ahead):
        loss = update(next(batches))
        if time.perf_counter() - began > spec.seconds:
            break
    loss.item()
    waited, done, started = 0.0, 0, time.perf_counter()
    while done < spec.updates and (done < 2 or time.perf_counter() - began < spec.seconds):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        loss = update(batch)
        done += 1
    loss.item()  # Waits for the device.
    elapsed = time.perf_counter() - started
    return TrainingMeasurement(
        update_s=elapsed / done, data_wait_share=waited / elapsed, first_update_s=first, updates=done
    )


def _loader(spec: TorchSpec, on_gpu: bool) -> DataLoader:
    workspace = Workspace(Path(spec.root))
    if spec.reads == "files":
        samples = PerSampleFiles(sample_files(workspace))
        return make_loader(samples, batch_size=spec.batch_size, workers=spec.workers, on_gpu=on_gpu)
    batches = PackedBatches(workspace, spec.batch_size)
    return make_loader(batches, batch_size=None, workers=spec.workers, on_gpu=on_gpu)


def _endless(loader: DataLoader) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from loader


if __name__ == "__main__":
    task = TorchSpec(**json.loads(Path(sys.argv[1]).read_text()))
    print(json.dumps(dataclasses.asdict(train(task))))
