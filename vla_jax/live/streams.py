"""What arrives from a robot, on one clock, and who is given it.

Times are float64 unix seconds on this computer's clock (`vla_jax.live.clock`), unless a field says that it is the
sender's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float32, Float64


@dataclass(frozen=True)
class State:
    """The arm at one moment."""

    time: float
    received: float
    origin_time: float
    """As the robot stamped it, by its own clock."""
    send_time: float
    """When it was sent, likewise."""
    force: float
    joints: Float64[np.ndarray, " j"]
    """Degrees."""
    pose: Float64[np.ndarray, " p"]
    """The values that the link's `state` names: mm and degrees."""
    offset: float = 0.0
    """What was added to the sender's clock."""
    epoch: int = 0
    """How often that clock has jumped."""


@dataclass(frozen=True)
class Picture:
    """One camera's picture as it came. jpeg: the file's bytes, not decoded yet."""

    view: str
    time: float
    received: float
    jpeg: bytes


@dataclass(frozen=True)
class SensorBatch:
    """Sensor rows that came together, in order of time: n of them, c channels."""

    times: Float64[np.ndarray, " n"]
    received: float
    send_times: Float64[np.ndarray, " n"]
    """By the sensor computer's own clock."""
    rows: Float32[np.ndarray, "n c"]
    """Force first, then the A-scan."""
    offset: float = 0.0
    """What was added to the sender's clock."""
    epoch: int = 0
    """How often that clock has jumped."""


class StreamSink(Protocol):
    """Is given everything that arrives: called on the receiving threads (one for each stream, in order within it), so
    that it must return within a millisecond. What it is given is never written again."""

    def state(self, state: State) -> None:
        """Takes the arm's state."""

    def picture(self, picture: Picture) -> None:
        """Takes a picture."""

    def sensor(self, batch: SensorBatch) -> None:
        """Takes sensor rows."""

    def episode_end(self, received: float) -> None:
        """Is told that the robot's program ended the episode; the next state begins another."""


class Sinks:
    """Gives everything to several."""

    def __init__(self, sinks: Sequence[StreamSink]) -> None:
        self._sinks = tuple(sinks)

    def state(self, state: State) -> None:
        """Takes the arm's state."""
        for sink in self._sinks:
            sink.state(state)

    def picture(self, picture: Picture) -> None:
        """Takes a picture."""
        for sink in self._sinks:
            sink.picture(picture)

    def sensor(self, batch: SensorBatch) -> None:
        """Takes sensor rows."""
        for sink in self._sinks:
            sink.sensor(batch)

    def episode_end(self, received: float) -> None:
        """Passes on that the episode ended."""
        for sink in self._sinks:
            sink.episode_end(received)
