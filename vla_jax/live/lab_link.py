"""The lab's robot, sensor and cameras (`vla_jax.live.wire`) as a `RobotLink`."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import zmq
from jaxtyping import Float

from vla_jax.contracts.specs import LAB_ACTIONS, LAB_ANGLES, LAB_STATE, ActionSpec, SensorSpec
from vla_jax.errors import UserError
from vla_jax.live import wire
from vla_jax.live.clock import LocalClock
from vla_jax.live.ports import LabPorts
from vla_jax.live.receivers import Receivers
from vla_jax.live.streams import State, StreamSink

START_TOLERANCE = 0.5
"""mm and degrees."""
_MAX_COMMANDS_WAITING = 2
_STOP_LINGER_MS = 500


class LabLink:
    """See `RobotLink`. Commands are JSON over ZeroMQ; the gripper, which the arm does not have, is not sent.

    has_sensor: whether there is one to receive. start_command: where episodes start; None leaves it to the robot's
    program.
    """

    actions: ActionSpec = replace(LAB_ACTIONS, horizon=1)
    state: tuple[str, ...] = LAB_STATE
    angles: tuple[str, ...] = LAB_ANGLES

    def __init__(
        self,
        ports: LabPorts,
        clock: LocalClock,
        *,
        has_sensor: bool = True,
        start_command: wire.Start | None = None,
        estimates_cameras: bool = False,
    ) -> None:
        self.sensor: SensorSpec | None = SensorSpec(window=None) if has_sensor else None
        self._ports = ports
        self._clock = clock
        self._start = start_command
        self._estimates_cameras = estimates_cameras
        self._receivers: Receivers | None = None
        self._context = zmq.Context()
        self._commands = self._context.socket(zmq.PUSH)
        # What nobody takes now must not reach the arm later.
        self._commands.setsockopt(zmq.IMMEDIATE, 1)
        self._commands.setsockopt(zmq.SNDHWM, _MAX_COMMANDS_WAITING)
        self._commands.setsockopt(zmq.LINGER, _STOP_LINGER_MS)

    def open(self, sink: StreamSink) -> None:
        """Opens all sockets. Raises UserError where an address cannot be had."""
        self._receivers = Receivers(
            self._ports,
            sink,
            self._clock,
            has_sensor=self.sensor is not None,
            estimates_cameras=self._estimates_cameras,
        )
        self._receivers.start()
        address = f"tcp://{self._ports.robot}:{self._ports.command_port}"
        try:
            self._commands.connect(address)
        except zmq.ZMQError as error:
            raise UserError(f"{address} is no address: {error}; see --robot and --command-port") from error

    def move(self, action: Float[np.ndarray, " a"]) -> bool:
        """Sends the pose delta of one tick."""
        return self._send(wire.MoveBy(tuple(action[:6].tolist())))

    def start(self) -> bool:
        """Asks the arm to go to where episodes start; False where nobody said where."""
        return self._start is not None and self._send(self._start)

    def is_at_start(self, state: State) -> bool:
        """Whether the arm is within `START_TOLERANCE` of where episodes start."""
        if self._start is None:
            return True
        far = np.zeros(0)
        if self._start.pose is not None:
            far = np.subtract(state.pose, self._start.pose)
        elif self._start.joints is not None:
            far = np.subtract(state.joints, self._start.joints)
        return bool((np.abs(far) <= START_TOLERANCE).all())

    def stop(self) -> bool:
        """Asks the arm to stop."""
        return self._send(wire.Stop())

    @property
    def failure(self) -> str | None:
        """Why a stream can be received no more."""
        return None if self._receivers is None else self._receivers.failure

    @property
    def jumps(self) -> Mapping[str, tuple[int, float]]:
        """Stream → jumps of its sender's clock, and the last one's seconds."""
        return {} if self._receivers is None else self._receivers.jumps

    def counts(self) -> Mapping[str, int]:
        """Returns counts by stream and kind."""
        return {} if self._receivers is None else dict(self._receivers.counts)

    def close(self) -> None:
        """Closes all sockets; a stop command is given half a second to leave."""
        if self._receivers is not None:
            self._receivers.close()
        self._commands.close()
        self._context.term()

    def _send(self, command: wire.Command) -> bool:
        try:
            self._commands.send(wire.encode_command(command), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True
