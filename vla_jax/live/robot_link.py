"""What a robot is to the live program: streams that come in, commands that go out. One file for each kind of robot."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from jaxtyping import Float

from vla_jax.contracts.specs import ActionSpec, SensorSpec
from vla_jax.live.streams import State, StreamSink


class RobotLink(Protocol):
    """A robot with its cameras and sensor.

    actions: what `move` takes, one each 1/rate_hz seconds; its horizon means nothing here.
    state: names of the values of `State.pose`. angles: those that are angles in degrees.
    sensor: its rows; None where it has none.
    """

    actions: ActionSpec
    state: tuple[str, ...]
    angles: tuple[str, ...]
    sensor: SensorSpec | None

    def open(self, sink: StreamSink) -> None:
        """Begins to receive: the sink is given everything that comes, from threads of the link's own.

        Raises:
            UserError: it cannot (a port is taken).
        """

    def move(self, action: Float[np.ndarray, " a"]) -> bool:
        """Sends one action, without waiting. False where nobody is there to take it; it is not sent later."""

    def start(self) -> bool:
        """Asks the robot's program to go to where episodes start, if the link was told where that is."""

    def is_at_start(self, state: State) -> bool:
        """Whether the arm is where episodes start; always, where the link was not told where that is."""

    def stop(self) -> bool:
        """Asks the robot to stop at once."""

    @property
    def failure(self) -> str | None:
        """Why nothing can be received any more; None while all is well."""

    @property
    def jumps(self) -> Mapping[str, tuple[int, float]]:
        """Stream → how often its sender's clock has jumped, and by how many seconds last."""

    def counts(self) -> Mapping[str, int]:
        """Returns what came and what was dropped, by stream and kind (`sensor/messages`, `sensor/damaged`)."""

    def close(self) -> None:
        """Ends receiving; what was sent is on its way."""
