"""What `--feature-age` says: ages in seconds, or a robot's log of them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_jax.contracts.specs import MAX_FEATURE_AGE_S
from vla_jax.errors import UserError

LOG_FILE = "ticks.jsonl"
NUM_QUANTILES = 21
MAX_LINE_BYTES = 1 << 16
"""Of a log; a tick's line has some thousand."""


def feature_age_quantiles(words: Sequence[str]) -> tuple[float, ...]:
    """Returns what `TrainConfig.feature_age` is to be: () where nothing is said.

    Raises:
        UserError: it is neither one age, nor two in order, nor a log with ages in it.
    """
    try:
        ages = tuple(float(word) for word in words)
    except ValueError:
        if len(words) == 1:
            return _measured(Path(words[0]))
        ages = (-1.0,)
    if len(ages) > 2 or not all(0 <= age <= MAX_FEATURE_AGE_S for age in ages) or list(ages) != sorted(ages):
        raise UserError(
            f"--feature-age {' '.join(words)}: give one age, two in ascending order, each from 0 to "
            f"{MAX_FEATURE_AGE_S:g} seconds, or a live run's log"
        )
    return ages


def _measured(path: Path) -> tuple[float, ...]:
    """Returns quantiles of the ages of features in a live run's log, ticks in which the policy acted. Longer ones count
    as the longest that policies are trained for."""
    file = path / LOG_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"--feature-age {path}: is no age in seconds, and there is no log {file}")
    ages = []
    try:
        with file.open("rb") as lines:
            while line := lines.readline(MAX_LINE_BYTES):
                ages += _ages_of(line)
    except OSError as error:
        raise UserError(f"--feature-age {file}: cannot be read ({error.strerror or error})") from error
    if not ages:
        raise UserError(f"--feature-age {file}: holds no tick that acted on features with an age")
    levels = np.linspace(0.0, 1.0, NUM_QUANTILES)
    found = np.quantile(np.minimum(ages, MAX_FEATURE_AGE_S), levels, method="closest_observation")
    return tuple(np.round(found, 4).tolist())


def _ages_of(line: bytes) -> list[float]:
    """Returns the age in a line of the log, seconds; [] where it has none."""
    try:
        entry = json.loads(line)
        if entry["kind"] != "tick" or entry["mode"] != "run":
            return []
        age = float(entry["age_ms"]["features"]) / 1e3
    except (ValueError, KeyError, TypeError, RecursionError):  # An event, or a line that was cut off.
        return []
    return [age] if 0 <= age < np.inf else []
