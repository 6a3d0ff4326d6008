"""What passes between the training benchmark and PyTorch's process: a task as JSON, then a measurement as JSON."""

from dataclasses import dataclass
from typing import Literal

from experiments.benchmarks.networks import HeadKind, Size


@dataclass(frozen=True)
class TorchSpec:
    """What to train on what. seconds: when to stop at the latest; compiled: through `torch.compile`."""

    root: str
    """Of the workspace (`experiments.benchmarks.workspace`)."""
    reads: Literal["files", "packed"]
    """"files" as the reference does, one by one for each sample."""
    kind: HeadKind
    size: Size
    sensor_length: int
    batch_size: int
    updates: int
    seconds: float
    workers: int
    compiled: bool


@dataclass(frozen=True)
class TrainingMeasurement:
    """One run of one side. first_update_s: None where it was not told apart; updates: those that were timed."""

    update_s: float
    data_wait_share: float
    first_update_s: float | None
    updates: int
