"""What happened between two log lines: means of the device's scalars, rates, and whether the loss is still finite."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vla_jax.contracts.metric_names import LOSS, RATE, WAITING


class NonFiniteLossError(Exception):
    """A loss that is infinite or not a number. step: the first such update; history: step → loss up to the newest."""

    def __init__(self, step: int, history: dict[int, float]) -> None:
        super().__init__(f"the loss became {history[step]} at step {step}")
        self.step = step
        self.history = history


class LogWindow:
    """Collects device scalars between two log lines, without waiting for the device.

    batch_size: samples of an update, for the rate.
    unlogged: what `fetch` returned when the checkpoint was saved that the run goes on from.
    """

    def __init__(self, batch_size: int, unlogged: Sequence[Mapping[str, float]] = ()) -> None:
        self._batch_size = batch_size
        self._scalars: list[Mapping[str, Any]] = list(unlogged)
        self._waited = 0.0
        self._started = time.perf_counter()
        self._steps = 0

    def add(self, scalars: Mapping[str, jax.Array]) -> None:
        """Takes what one update returned."""
        self._scalars.append(scalars)
        self._steps += 1

    def waited(self, seconds: float) -> None:
        """Counts time in which the loop waited for data."""
        self._waited += seconds

    def restart(self) -> None:
        """Leaves validation and saving out of the rates."""
        self._started, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def fetch(self, step: int) -> list[dict[str, float]]:
        """Waits for the device and returns the scalars of every update since the last log line, up to `step`.

        Raises:
            NonFiniteLossError: one of the losses is not finite.
        """
        fetched = [
            {name: float(value) for name, value in scalars.items()}
            for scalars in jax.device_get(self._scalars)
        ]
        history = {step - len(fetched) + 1 + index: scalars[LOSS] for index, scalars in enumerate(fetched)}
        for at, loss in history.items():
            if not math.isfinite(loss):
                raise NonFiniteLossError(at, history)
        return fetched

    def summarise(self, step: int) -> dict[str, float]:
        """Returns the window's means and rates, and begins the next window.

        Raises:
            NonFiniteLossError: a loss in the window is not finite.
        """
        fetched = self.fetch(step)
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        summary = {name: float(np.mean([scalars[name] for scalars in fetched])) for name in fetched[0]}
        if self._steps:
            summary[RATE] = self._steps * self._batch_size / elapsed
            summary[WAITING] = min(self._waited / elapsed, 1.0)
        self._scalars = []
        self.restart()
        return summary
