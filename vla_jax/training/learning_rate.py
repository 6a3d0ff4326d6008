"""Learning-rate schedules as pure functions of the update number.

Each takes the array namespace `xp`: numpy gives float64 on the host, jax.numpy works inside a jitted step.
"""

from types import ModuleType
from typing import Any

import numpy as np


def trapezoid(
    update: Any,
    *,
    total_updates: int,
    peak: float,
    minimum: float,
    warmup_ratio: float,
    hold_ratio: float,
    xp: ModuleType = np,
) -> Any:
    """Returns the rate of update 0, 1, …: linear warm-up, hold at `peak`, cosine to `minimum`.

    The first update already uses peak / warm-up length. `update` may be an array. Past `total_updates` the cosine
    rises again, as in the reference; training never goes there.
    """
    warmup, hold, decay = _phases(total_updates, warmup_ratio, hold_ratio)
    rising = peak * (update + 1) / max(warmup, 1)
    falling = _cosine((update - warmup - hold) / decay, peak, minimum, xp)
    return xp.where(update < warmup, rising, xp.where(update < warmup + hold, peak, falling))


def rewarm(
    update: Any,
    *,
    total_updates: int,
    previous: float,
    peak: float,
    minimum: float,
    warmup_ratio: float,
    hold_ratio: float,
    xp: ModuleType = np,
) -> Any:
    """Returns the rate after a resume: from `previous` linearly to `peak`, hold, cosine to `minimum`, stay there.

    Update 0 still uses `previous`, as in the reference.
    """
    warmup, hold, decay = _phases(total_updates, warmup_ratio, hold_ratio)
    rising = previous + (peak - previous) * (update + 1) / max(warmup, 1)
    progress = xp.clip((update - warmup - hold) / decay, 0.0, 1.0)
    falling = _cosine(progress, peak, minimum, xp)
    rate = xp.where(update < warmup, rising, xp.where(update < warmup + hold, peak, falling))
    return xp.where(update == 0, previous, rate)


def _phases(total_updates: int, warmup_ratio: float, hold_ratio: float) -> tuple[int, int, int]:
    warmup, hold = int(total_updates * warmup_ratio), int(total_updates * hold_ratio)
    return warmup, hold, max(total_updates - warmup - hold, 1)


def _cosine(progress: Any, peak: float, minimum: float, xp: ModuleType) -> Any:
    return minimum + (peak - minimum) * 0.5 * (1.0 + xp.cos(np.pi * progress))
