"""Time stamps as recordings carry them."""

import numpy as np

from vla_jax.recordings.findings import EpisodeError


def check_times(times: np.ndarray, what: str) -> None:
    """Raises EpisodeError unless times are finite and strictly ascending; `what` names them."""
    if not np.isfinite(times).all():
        row = int(np.argmin(np.isfinite(times)))
        raise EpisodeError(f"{what}: time stamp {row} is {times[row]}")
    steps = np.diff(times)
    if (steps <= 0).any():
        row = int(np.argmax(steps <= 0))
        kind = "repeats" if steps[row] == 0 else "goes back by"
        amount = "" if steps[row] == 0 else f" {-steps[row]:.6g} s"
        raise EpisodeError(
            f"{what}: times must ascend, but time {row + 1} {kind}{amount} "
            f"({int((steps <= 0).sum())} such place(s))"
        )
