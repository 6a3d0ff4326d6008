"""What a run tells while it trains: its log lines, and the progress bar above them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
from tqdm import tqdm

from vla_jax.contracts.metric_names import GRADIENT_NORM, LEARNING_RATE, LOSS, RATE, WAITING
from vla_jax.progress import progress_bar
from vla_jax.training.config import TrainConfig
from vla_jax.training.log_window import LogWindow
from vla_jax.training.metric_writer import MetricWriter
from vla_jax.training.processes import is_main_process
from vla_jax.training.starting_point import StartingPoint


class RunLog:
    """Collects what updates return, and writes it when it is due. Process 0 writes; the numbers are the same in all.

    window: the updates since the last log line.
    """

    def __init__(
        self, window: LogWindow, writer: MetricWriter | None, bar: tqdm, announce: Callable[[str], None]
    ) -> None:
        self.window = window
        self._announce = announce
        self._writer = writer
        self._bar = bar

    def add(self, scalars: Mapping[str, jax.Array]) -> None:
        """Takes what one update returned, without waiting for the device."""
        self.window.add(scalars)
        self._bar.update()

    def say(self, line: str) -> None:
        """Announces something above the progress bar."""
        with self._bar.external_write_mode():
            self._announce(line)

    def write_window(self, step: int) -> None:
        """Writes a log line of the updates since the last one.

        Raises:
            NonFiniteLossError: one of their losses is not finite.
        """
        logged = self.window.summarise(step)
        self._bar.set_postfix_str(_postfix(logged), refresh=False)
        self.write(step, logged)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a log line of metrics, if there are any."""
        if self._writer is not None and metrics:
            self._writer.write(step, metrics)


@contextlib.contextmanager
def open_log(
    run: Path,
    config: TrainConfig,
    start: StartingPoint,
    *,
    wandb: bool,
    announce: Callable[[str], None],
) -> Iterator[RunLog]:
    """Opens RUN's log where the run goes on. wandb: send the metrics to Weights & Biases too."""
    with contextlib.ExitStack() as stack:
        writer = None
        if is_main_process():
            sent = config if wandb else None
            writer = stack.enter_context(MetricWriter(run, resume_step=start.step, wandb=sent))
        bar = stack.enter_context(
            progress_bar(
                total=config.steps,
                initial=start.step,
                desc="train",
                unit="step",
                smoothing=0.1,
                disable=not is_main_process() or None,
            )
        )
        yield RunLog(LogWindow(config.batch_size, start.unlogged), writer, bar, announce)


def _postfix(logged: Mapping[str, float]) -> str:
    parts = [
        f"loss {logged[LOSS]:.4f}",
        f"lr {logged[LEARNING_RATE]:.1e}",
        f"gradient {logged[GRADIENT_NORM]:.2g}",
    ]
    if RATE in logged:
        parts += [f"{logged[RATE]:.0f} samples/s", f"data {100 * logged[WAITING]:.0f}%"]
    return ", ".join(parts)
