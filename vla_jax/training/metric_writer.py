"""Where a run's numbers go: JSON lines always, TensorBoard beside them, Weights & Biases when asked for."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vla_jax.storage.replacing import replace_text
from vla_jax.training.config import TrainConfig
from vla_jax.training.wandb_sink import WandbSink

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

METRICS_FILE = "metrics.jsonl"


class MetricWriter:
    """Appends metrics to RUN/metrics.jsonl and to TensorBoard event files under RUN/tensorboard.

    wandb: the configuration to show in Weights & Biases; None sends nothing there.

    Names are `group/name`. One line of JSON per call, with its step; a resumed run appends to the same files, and
    lines after the step it resumed from are taken out first, so that every step stands there once.
    """

    def __init__(self, run: Path, *, resume_step: int = 0, wandb: TrainConfig | None = None) -> None:
        self._wandb = None if wandb is None else WandbSink(run, wandb)
        self.path = run / METRICS_FILE
        self._drop_lines_after(resume_step)
        self._lines = self.path.open("a")
        self._events = _event_writer(run / "tensorboard", resume_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records `metrics` of `step`; values that are not finite are written as null."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._lines.write(json.dumps({"step": step, **finite}) + "\n")
        self._lines.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.write(step, metrics)

    def close(self, *, failed: bool = False) -> None:
        """Flushes and closes all of them."""
        self._lines.close()
        self._events.close()
        if self._wandb is not None:
            self._wandb.close(failed=failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def _drop_lines_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:
                continue  # The last line of a run that was killed while it wrote.
        replace_text(self.path, "".join(kept))


def _event_writer(directory: Path, resume_step: int) -> "SummaryWriter":
    """Opens TensorBoard's event files.

    tensorboardX imports torch where it is installed, to write torch's tensors: two seconds for what it is never given.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # pyrefly: ignore[unsupported-operation]: importing it then raises ImportError
    try:
        from tensorboardX import SummaryWriter  # Imports a protobuf runtime: only when a run starts.
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter(str(directory), purge_step=resume_step or None)
