"""One side of the training benchmark: the heads trained by PyTorch, in a process of its own.

`python -m experiments.benchmarks.torch_training SPEC.json` prints one line of JSON.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from experiments.benchmarks.head_cases import ADAMW, CLIP_NORM, policy_config
from experiments.benchmarks.reference_feeding import PerSampleFiles
from experiments.benchmarks.reference_loader import PREFETCHED, PackedBatches, make_loader, sample_files
from experiments.benchmarks.torch_heads import Policy
from vla_jax.diffusion.schedule import cosine_schedule

SENSOR_WEIGHT = 2.0


@dataclass(frozen=True)
class TorchSpec:
    """What to train on what. reads: "files" as the reference does, or "packed". seconds: when to stop at the latest."""

    data: str
    cache: str
    feature_files: str
    reads: Literal["files", "packed"]
    model_type: str
    size: str
    sensor_length: int
    batch_size: int
    updates: int
    seconds: float
    workers: int
    compiled: bool


def train(spec: TorchSpec) -> dict[str, Any]:
    """Trains and returns samples per second, the share of time waiting for data, and the first update's seconds.

    The updates for which the workers had read ahead while the first one was prepared do not count.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    config = policy_config(spec.model_type, spec.sensor_length, spec.size)
    torch.manual_seed(0)
    policy = Policy(config).to(device)
    parameters = list(policy.parameters())
    optimizer = torch.optim.AdamW(parameters, **ADAMW)
    if spec.compiled:
        policy.sensor_encoder.compile()
        policy.action_expert.compile()
    if config.head.noise_steps is not None:
        cumulative = torch.tensor(cosine_schedule(config.head.noise_steps).alphas_cumprod, device=device)

    def update(batch: dict[str, Tensor]) -> Tensor:
        batch = {name: value.to(device, non_blocking=True).float() for name, value in batch.items()}
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            features = policy.encode(batch["sensor"])
            if spec.model_type == "diffusion":
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
    last = loss.item()  # Waits for the device.
    elapsed = time.perf_counter() - started
    return {
        "samples_per_second": done * spec.batch_size / elapsed,
        "data_wait_share": waited / elapsed,
        "first_update_s": first,
        "updates": done,
        "last_loss": last,
    }


def _loader(spec: TorchSpec, on_gpu: bool) -> DataLoader:
    if spec.reads == "files":
        samples = PerSampleFiles(sample_files(Path(spec.data), Path(spec.feature_files)))
        return make_loader(samples, batch_size=spec.batch_size, workers=spec.workers, on_gpu=on_gpu)
    batches = PackedBatches(Path(spec.data), Path(spec.cache), spec.batch_size)
    return make_loader(batches, batch_size=None, workers=spec.workers, on_gpu=on_gpu)


def _endless(loader: DataLoader) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from loader


if __name__ == "__main__":
    print(json.dumps(train(TorchSpec(**json.loads(Path(sys.argv[1]).read_text())))))
