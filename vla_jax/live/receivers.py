"""The lab's three streams, received: a thread for each, and nothing that comes can make one raise or grow.

Damaged messages are counted and dropped, and so are those whose times cannot be.
"""

import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import zmq

from vla_jax.errors import UserError
from vla_jax.live import wire
from vla_jax.live.clock import LocalClock, SenderClock
from vla_jax.live.ports import LabPorts
from vla_jax.live.streams import Picture, SensorBatch, State, StreamSink

logger = logging.getLogger(__name__)

CAMERAS, ROBOT, SENSOR = "cameras", "robot", "sensor"
_POLL_MS = 100
_UDP_BUFFER_BYTES = 8 << 20
"""The kernel gives at most net.core.rmem_max of it; its usual 208 KiB are 75 ms of the sensor."""
_MAX_PICTURES_WAITING = 10
_MAX_STATES_WAITING = 500
_HEARTBEAT_MS = 1000
MAX_HELD_S = 5.0
"""Nothing was taken longer before it was sent, nor after it."""


class Receivers:
    """Receives all streams and gives them to a sink, with times on one clock.

    has_sensor: whether there is one to receive.
    estimates_cameras: whether the cameras' clock is estimated as the others are. By default their stamps count as they
        are, as in recordings: a picture has no send time, so that what passes from its exposure to its sending would
        be taken for a difference of clocks.

    Attributes:
        counts: messages and what was dropped, by stream and kind.
        failure: why a thread has ended; None while all run.
    """

    def __init__(
        self,
        ports: LabPorts,
        sink: StreamSink,
        clock: LocalClock,
        *,
        has_sensor: bool = True,
        estimates_cameras: bool = False,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.failure: str | None = None
        self._ports = ports
        self._sink = sink
        self._clock = clock
        self._clocks = {name: SenderClock() for name in (CAMERAS, ROBOT, SENSOR)}
        self._has_sensor = has_sensor
        self._estimates_cameras = estimates_cameras
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._context = zmq.Context()
        self._datagram = bytearray(wire.MAX_DATAGRAM_BYTES + 1)

    def start(self) -> None:
        """Opens the sockets and begins.

        Raises:
            UserError: an address cannot be had.
        """
        try:
            self._run(CAMERAS, self._pull(), self._take_picture)
            self._run(ROBOT, self._subscribe(), self._take_robot)
            if self._has_sensor:
                self._run(SENSOR, self._listen(), self._take_sensor)
        except BaseException:
            self.close()
            raise
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends the threads and closes the sockets."""
        self._closing.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._context.destroy(linger=0)

    @property
    def jumps(self) -> Mapping[str, tuple[int, float]]:
        """Stream → how often its sender's clock has jumped, and by how many seconds last."""
        return {name: (clock.jumps, clock.last_jump) for name, clock in self._clocks.items()}

    def _pull(self) -> zmq.Socket:
        address = f"tcp://{self._ports.bind}:{self._ports.camera_port}"
        pull = self._socket(zmq.PULL, _MAX_PICTURES_WAITING, wire.MAX_JPEG_BYTES)
        try:
            pull.bind(address)
        except zmq.ZMQError as error:
            raise UserError(f"cannot receive pictures at {address}: {error}; see --camera-port") from error
        return pull

    def _subscribe(self) -> zmq.Socket:
        address = f"tcp://{self._ports.robot}:{self._ports.robot_port}"
        subscriber = self._socket(zmq.SUB, _MAX_STATES_WAITING, wire.MAX_JSON_BYTES)
        try:
            subscriber.connect(address)
        except zmq.ZMQError as error:
            raise UserError(f"{address} is no address: {error}; see --robot and --robot-port") from error
        for topic in (wire.STATE_TOPIC, wire.END_TOPIC):
            subscriber.setsockopt(zmq.SUBSCRIBE, topic)
        return subscriber

    def _socket(self, kind: int, waiting: int, max_bytes: int) -> zmq.Socket:
        made = self._context.socket(kind)
        for option, value in (
            (zmq.RCVHWM, waiting),
            (zmq.MAXMSGSIZE, max_bytes),
            (zmq.RCVTIMEO, _POLL_MS),
            (zmq.HEARTBEAT_IVL, _HEARTBEAT_MS),
            (zmq.LINGER, 0),
        ):
            made.setsockopt(option, value)
        return made

    def _listen(self) -> socket.socket:
        host, port = self._ports.bind, self._ports.sensor_port
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UDP_BUFFER_BYTES)
        listener.settimeout(_POLL_MS / 1e3)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            listener.close()
            raise UserError(
                f"cannot receive the sensor at {host}:{port}: {error}; see --sensor-port"
            ) from error
        return listener

    def _run(self, name: str, source: Any, take: Callable[[Any, float], None]) -> None:
        receive = self._receive_datagram if name == SENSOR else zmq.Socket.recv_multipart

        def run() -> None:
            try:
                while not self._closing.is_set():
                    try:
                        message = receive(source)
                    except (zmq.Again, TimeoutError):
                        continue
                    received = self._clock.now()
                    self.counts[f"{name}/messages"] += 1
                    try:
                        take(message, received)
                    except wire.WireError as error:
                        if not self.counts[f"{name}/damaged"]:
                            logger.warning("%s: a damaged message was dropped (%s)", name, error)
                        self.counts[f"{name}/damaged"] += 1
            except Exception as error:  # Whatever it is, the arm must not move on without this stream.
                self.failure = f"{name}: {type(error).__name__}: {error}"
                logger.exception("%s: receiving has ended", name)
            finally:
                source.close()

        self._threads.append(threading.Thread(target=run, name=f"receive-{name}", daemon=True))

    def _receive_datagram(self, listener: socket.socket) -> memoryview:
        size = listener.recv_into(self._datagram)
        return memoryview(self._datagram)[:size]

    def _take_picture(self, parts: list[bytes], received: float) -> None:
        found = wire.decode_picture(parts)
        offset = 0.0
        if self._estimates_cameras:
            if not self._knows_time(CAMERAS, found.time_s, received):
                return
            offset = self._clocks[CAMERAS].offset
        self._sink.picture(Picture(found.view, found.time_s + offset, received, found.jpeg))

    def _take_robot(self, parts: list[bytes], received: float) -> None:
        found = wire.decode_robot(parts)
        if isinstance(found, wire.EpisodeEnd):
            self._sink.episode_end(received)
            return
        if not self._knows_time(ROBOT, found.sent_s, received):
            return
        clock = self._clocks[ROBOT]
        taken = found.origin_s
        if not 0.0 <= found.sent_s - taken <= MAX_HELD_S:
            # By a clock of its own, which nothing tells us of: the arm's controller.
            self.counts["robot/odd_origins"] += 1
            taken = found.sent_s
        self._sink.state(
            State(
                taken + clock.offset,
                received,
                found.origin_s,
                found.sent_s,
                found.force,
                found.joints,
                found.pose,
                clock.offset,
                clock.jumps,
            )
        )

    def _take_sensor(self, datagram: memoryview, received: float) -> None:
        found = wire.decode_sensor(datagram)
        if np.abs(found.sent_s - found.times_s).max() > MAX_HELD_S:
            self.counts["sensor/odd_times"] += 1
            return
        if not self._knows_time(SENSOR, float(found.sent_s[-1]), received):
            return
        clock = self._clocks[SENSOR]
        times = found.times_s + clock.offset
        self._sink.sensor(SensorBatch(times, received, found.sent_s, found.rows, clock.offset, clock.jumps))

    def _knows_time(self, name: str, sent: float, received: float) -> bool:
        known = self._clocks[name].observe(sent, received)
        if not known:
            self.counts[f"{name}/odd_times"] += 1
        return known
