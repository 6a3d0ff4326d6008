"""The lab's receiver of commands."""

import threading

import zmq

from experiments.phantom.lab.arm import Arm
from vla_jax.live.clock import LocalClock
from vla_jax.live.wire import MAX_JSON_BYTES, WireError, decode_command

_LOOK_AT_STOP_MS = 100


class CommandReceiver(threading.Thread):
    """Hands commands to the arm as they come; those that do not fit the format are counted as damaged.

    port: where it listens; any that is free for 0.
    """

    def __init__(self, arm: Arm, clock: LocalClock, host: str, port: int) -> None:
        """Raises zmq.ZMQError: the port is taken."""
        super().__init__(name="commands", daemon=True)
        self._arm, self._clock = arm, clock
        self._is_closing = threading.Event()
        self._socket = zmq.Context.instance().socket(zmq.PULL)
        self._socket.linger = 0
        self._socket.maxmsgsize = MAX_JSON_BYTES
        try:
            if port == 0:
                port = self._socket.bind_to_random_port(f"tcp://{host}")
            else:
                self._socket.bind(f"tcp://{host}:{port}")
        except zmq.ZMQError:
            self._socket.close()
            raise
        self.port = port

    def run(self) -> None:
        """The thread."""
        while not self._is_closing.is_set():
            if not self._socket.poll(_LOOK_AT_STOP_MS):
                continue
            parts = self._socket.recv_multipart()
            now = self._clock.now()
            try:
                if len(parts) != 1:
                    raise WireError(f"a command has 1 part, not {len(parts)}")
                self._arm.receive(decode_command(parts[0]), now)
            except WireError:
                self._arm.counts["damaged"] += 1
        self._socket.close()

    def close(self) -> None:
        """Stops listening."""
        self._is_closing.set()
        self.join()
