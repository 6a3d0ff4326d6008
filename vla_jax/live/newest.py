"""The newest of all streams of a robot, as they come."""

from collections.abc import Sequence

import numpy as np

from vla_jax.dataset.alignment import MIN_GAP_SECONDS
from vla_jax.live.buffers import PictureBuffer, RowBuffer
from vla_jax.live.robot_link import RobotLink
from vla_jax.live.streams import Picture, SensorBatch, State

_STATES_KEPT = 200
_SENSOR_ROWS_KEPT = 1300
_STATE_PERIOD_S = 0.01
ELSEWHERE_MM = 5.0
"""An arm that is not heard for `MIN_GAP_SECONDS` goes no further: it stands still once its commands have expired. Where
it is found beyond, somebody has moved it: another episode begins, and the end of the one before was lost."""

_END_LATE_S = 1.0
"""How late such an end's message may still come; no episode is as short."""


class NewestOfAll:
    """A `StreamSink` that keeps the newest of each stream.

    views: cameras to keep; pictures of others are nobody's.

    Attributes:
        last_state: the state that came last; None before the first.
        states, rows, pictures: their buffers; rows is None where the link has no sensor.
        episodes_ended: how often the robot's program has ended an episode, heard or not (`ELSEWHERE_MM`).
        episode_ended_at: when it last did, our clock; −inf before.
    """

    def __init__(self, link: RobotLink, views: Sequence[str]) -> None:
        self.states = RowBuffer(_STATES_KEPT, len(link.state), np.float64, _STATE_PERIOD_S)
        self.rows: RowBuffer | None = None
        if link.sensor is not None:
            period = None if link.sensor.hz is None else 1.0 / link.sensor.hz
            self.rows = RowBuffer(_SENSOR_ROWS_KEPT, link.sensor.channels, np.float32, period)
        self.pictures = PictureBuffer()
        self.last_state: State | None = None
        self._views = frozenset(views)
        self._positions = [axis for axis, name in enumerate(link.state) if name not in link.angles]
        self.episodes_ended = 0
        self.episode_ended_at = -np.inf
        self._ended_unheard_at = -np.inf

    def state(self, state: State) -> None:
        """Takes the arm's state."""
        if self.last_state is not None and self._was_brought_elsewhere(state, self.last_state):
            self.episode_end(self.last_state.received)
            self._ended_unheard_at = state.received
        times = np.array([state.time])
        self.states.add(times, state.pose[None], state.received, state.offset, state.epoch)
        self.last_state = state

    def picture(self, picture: Picture) -> None:
        """Takes a picture."""
        if picture.view in self._views:
            self.pictures.add(picture)

    def sensor(self, batch: SensorBatch) -> None:
        """Takes sensor rows."""
        if self.rows is not None:
            self.rows.add(batch.times, batch.rows, batch.received, batch.offset, batch.epoch)

    def episode_end(self, received: float) -> None:
        """Notes that the episode has ended, unless that is known and only its message was late."""
        if received < self._ended_unheard_at + _END_LATE_S:
            return
        self.episode_ended_at = received
        self.episodes_ended += 1

    def _was_brought_elsewhere(self, state: State, last: State) -> bool:
        moved_mm = float(np.linalg.norm((state.pose - last.pose)[self._positions]))
        return state.received - last.received > MIN_GAP_SECONDS and moved_mm > ELSEWHERE_MM
