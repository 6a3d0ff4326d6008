"""What a run has written about itself so far: its curves and its configuration."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.contracts.metric_names import BEST_METRIC, RATE, VALIDATION
from vla_jax.errors import UserError
from vla_jax.policy.checkpoints import checkpoint_steps, read_metadata, resolve_checkpoint
from vla_jax.training.metric_writer import METRICS_FILE
from vla_jax.training.run_directory import CONFIG_FILE
from vla_jax.training.settings import flat

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curve:
    """One metric over the updates. steps: (n,) ascending; values: (n,), NaN where the value was not finite."""

    steps: np.ndarray
    values: np.ndarray

    def best(self) -> tuple[int, float] | None:
        """Returns (step, value) of the smallest value; None where no value is finite."""
        if not np.isfinite(self.values).any():
            return None
        place = int(np.nanargmin(self.values))
        return int(self.steps[place]), float(self.values[place])

    def last(self) -> float | None:
        """Returns the newest value; None when it is not finite."""
        value = float(self.values[-1])
        return value if math.isfinite(value) else None

    def first_at_most(self, limit: float) -> int | None:
        """Returns the first step whose value is not above `limit`."""
        reached = np.flatnonzero(self.values <= limit)
        return int(self.steps[reached[0]]) if len(reached) else None


@dataclass(frozen=True)
class RunHistory:
    """A run, finished or not. settings: its configuration, what it was trained on included, under dotted names."""

    path: Path
    curves: Mapping[str, Curve]
    settings: Mapping[str, Any]
    batch_size: int
    planned_steps: int

    @property
    def steps(self) -> int:
        """The newest step that was logged."""
        return max((int(curve.steps[-1]) for curve in self.curves.values()), default=0)

    def steps_per_second(self) -> float | None:
        """Returns the median rate of updates between two log lines; validation and saving do not count."""
        rates = self.curves.get(RATE)
        return None if rates is None else float(np.nanmedian(rates.values)) / self.batch_size

    def seconds(self) -> float | None:
        """Returns the time that all updates took, each at the rate logged with it."""
        rates = self.curves.get(RATE)
        if rates is None:
            return None
        updates = np.diff(rates.steps, prepend=0)
        return float(np.nansum(updates * self.batch_size / rates.values))


def read_history(run: Path) -> RunHistory:
    """Reads what a run has logged; the last line of one that was killed while it wrote is left out.

    Raises:
        UserError: there is no such run, it has logged nothing, or its files are damaged.
    """
    if not run.is_dir():
        raise UserError(f"no such directory: {run}; give training output directories")
    metrics, configuration = run / METRICS_FILE, run / CONFIG_FILE
    for path in (metrics, configuration):
        if not path.is_file():
            raise UserError(f"{run} is not a training run, or has not begun: it holds no {path.name}")
    try:
        config = json.loads(configuration.read_text())
        batch_size, planned = int(config["batch_size"]), int(config["steps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{configuration} is damaged: {error}") from error
    curves = _curves(metrics)
    if not curves:
        raise UserError(f"{run} has not logged anything yet")
    return RunHistory(run, curves, flat(config) | _identity(run), batch_size, planned)


def validation_names(histories: list[RunHistory]) -> list[str]:
    """Returns the held-out metrics that any of the runs has, the one that decides on the best checkpoint first."""
    names = {name for history in histories for name in history.curves if name.startswith(VALIDATION)}
    return sorted(names, key=lambda name: (name != BEST_METRIC, name))


def _curves(path: Path) -> dict[str, Curve]:
    points: dict[str, dict[int, float]] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            step = int(entry.pop("step"))
            values = {name: math.nan if value is None else float(value) for name, value in entry.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):  # Only a line without its end is one that is still being written.
                continue
            raise UserError(
                f"{path} is damaged at line {number} ({error}); take that line out to compare the rest"
            ) from error
        for name, value in values.items():
            points.setdefault(name, {})[step] = value
    return {
        name: Curve(np.array(sorted(found)), np.array([found[step] for step in sorted(found)], np.float64))
        for name, found in points.items()
    }


def _identity(run: Path) -> dict[str, Any]:
    """What the newest checkpoint says it was trained on; nothing before the first one, or when it cannot be read."""
    if not checkpoint_steps(run):
        return {}
    try:
        return flat(asdict(read_metadata(resolve_checkpoint(run)).identity))
    except UserError as error:  # The curves can be compared all the same.
        logger.warning("compared without what it was trained on: %s", error)
        return {}
