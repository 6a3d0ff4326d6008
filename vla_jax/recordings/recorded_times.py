"""Time stamps as recordings carry them: in arrays, and at the end of pictures' file names."""

import os

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


def time_in_name(name: str) -> float:
    """Returns the unix time at the end of a picture's file name. Raises EpisodeError if there is none."""
    stem = os.path.basename(name).rsplit(".", 1)[0]
    try:
        time = float(stem.rsplit("_", 1)[-1])
    except ValueError as error:
        raise EpisodeError(f"{name}: the file name does not end in a unix time") from error
    if not np.isfinite(time):
        raise EpisodeError(f"{name}: the file name does not end in a unix time")
    return time
