"""Whether an episode's streams were stamped by one clock, and its metadata tell the rates that were recorded."""

import numpy as np

from vla_jax.recordings.findings import EpisodeError

# Nominal and measured rates of one recording differ by less.
LARGEST_RATIO = 3.0
# Numbers below are counts or seconds since a beginning, not unix times.
EARLIEST_UNIX_TIME = 1e8


def clocks_differ(what: str, times: np.ndarray, ticks: np.ndarray) -> str:
    """Says how the times of a stream lie beside those of the control ticks, none of which sees it.

    what: names the stream. times, ticks: ascending, seconds, at least one each.
    """
    if times[-1] < EARLIEST_UNIX_TIME <= ticks[0]:
        return (
            f"{what}: its times {times[0]:.6g} to {times[-1]:.6g} are no unix times, those of the poses begin at "
            f"{ticks[0]:.0f}; each must tell when it was recorded, by the robot's clock"
        )
    offset = times[0] - ticks[0]
    side = "after" if offset > 0 else "before"
    return (
        f"{what}: begins {duration(abs(offset))} {side} the poses, and no tick sees it; their clocks differ by about "
        "as much, or they are of two recordings"
    )


def check_rate(name: str, declared: float, measured: float) -> None:
    """Raises EpisodeError where a declared rate is not the measured one, both in Hz, not even nearly."""
    if not measured / LARGEST_RATIO <= declared <= measured * LARGEST_RATIO:
        raise EpisodeError(
            f"metadata.json: {name} is {declared:.6g}, but the time stamps say {measured:.3g} Hz"
        )


def duration(seconds: float) -> str:
    """Returns a length of time as a person reads it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
