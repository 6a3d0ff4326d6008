"""The lab's three senders: messages leave at their moments, through links that may be faulty, over real sockets."""

import contextlib
import heapq
import itertools
import socket
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import zmq

from experiments.phantom.lab.faults import Delivery, FaultyLink, Restarts
from vla_jax.live.clock import LocalClock
from vla_jax.live.wire import STATE_TOPIC

CAMERA_QUEUE = 5
LINGER_MS = 500
_LONGEST_WAIT_S = 0.05


class Line(Protocol):
    """A stream's socket. All of it is used by one thread."""

    def open(self) -> None:
        """Makes the socket; raises zmq.ZMQError where that cannot be."""

    def close(self, linger_ms: int = 0) -> None:
        """Closes it, if it is open; what it has not sent by then is lost."""

    def send(self, parts: list[bytes]) -> bool:
        """Sends a message without waiting; tells whether it could."""

    @property
    def is_open(self) -> bool:
        """Whether there is a socket."""


class _ZmqLine:
    """A ZeroMQ socket."""

    def __init__(self, kind: int) -> None:
        self._kind = kind
        self._socket: zmq.Socket | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a socket."""
        return self._socket is not None

    def close(self, linger_ms: int = 0) -> None:
        """Closes it; what it has not sent by then is lost."""
        if self._socket is not None:
            self._socket.close(linger=linger_ms)
            self._socket = None

    def send(self, parts: list[bytes]) -> bool:
        """Sends a message; False where the queue is full or nobody is there."""
        if self._socket is None:
            return False
        try:
            self._socket.send_multipart(parts, flags=zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _make(self) -> zmq.Socket:
        return zmq.Context.instance().socket(self._kind)


class CameraLine(_ZmqLine):
    """PUSH that connects to the receiver's PULL."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(zmq.PUSH)
        self._address = f"tcp://{host}:{port}"

    def open(self) -> None:
        """Connects, now or as soon as there is somebody."""
        made = self._make()
        made.sndhwm = CAMERA_QUEUE
        made.immediate = True  # Pictures of the time before somebody was there are not kept.
        made.connect(self._address)
        self._socket = made


class RobotLine(_ZmqLine):
    """PUB that receivers subscribe to; it knows whether somebody has."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(zmq.XPUB)
        self._host, self.port = host, port
        self._subscriptions = 0

    @property
    def has_listener(self) -> bool:
        """Whether somebody subscribes to the robot's state."""
        return self._subscriptions > 0

    def open(self) -> None:
        """Binds; port 0 becomes any that is free, and stays that."""
        made = self._make()
        made.setsockopt(zmq.XPUB_VERBOSER, 1)
        try:
            if self.port == 0:
                self.port = made.bind_to_random_port(f"tcp://{self._host}")
            else:
                made.bind(f"tcp://{self._host}:{self.port}")
        except zmq.ZMQError:
            made.close(linger=0)
            raise
        self._socket, self._subscriptions = made, 0

    def look(self) -> None:
        """Notes who has subscribed and who has gone."""
        while self._socket is not None:
            try:
                change = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            # An empty topic is all topics.
            if change[:1] in (b"\x00", b"\x01") and STATE_TOPIC.startswith(change[1:]):
                self._subscriptions += 1 if change[:1] == b"\x01" else -1


class SensorLine:
    """UDP datagrams."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._socket: socket.socket | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a socket."""
        return self._socket is not None

    def open(self) -> None:
        """Makes the socket."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def close(self, linger_ms: int = 0) -> None:
        """Closes it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, parts: list[bytes]) -> bool:
        """Sends a datagram; False where the machine's buffer is full."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto(b"".join(parts), self._address)
        except OSError:
            return False
        return True


def _numbers() -> array:
    return array("d")


@dataclass
class Sent:
    """What a stream has sent, for whoever checks ages: times are true unix seconds, one of each for every message."""

    taken_s: array = field(default_factory=_numbers)
    """When the newest that it holds was taken."""
    stamped_s: array = field(default_factory=_numbers)
    """The time that the message says."""
    sent_s: array = field(default_factory=_numbers)
    arrived_s: array = field(default_factory=_numbers)
    """When it went into the socket at last; NaN where it was lost or damaged."""
    late_s: array = field(default_factory=_numbers)
    """How much later than planned it was sent, before any fault."""


@dataclass(frozen=True)
class Post:
    """A message to be sent. make: its parts, given the moment at which it is sent."""

    due_s: float
    stream: str
    taken_s: float
    stamped_s: float
    make: Callable[[float], list[bytes]]


class Senders(threading.Thread):
    """Sends what is posted, on a thread that owns the sockets.

    sent: by stream. counts: stream → what became of its messages.
    """

    def __init__(
        self, clock: LocalClock, lines: Mapping[str, Line], links: Mapping[str, tuple[FaultyLink, Restarts]]
    ) -> None:
        super().__init__(name="senders", daemon=True)
        self.sent = {stream: Sent() for stream in lines}
        self.counts = {stream: Counter() for stream in lines}
        self._clock, self._lines, self._links = clock, lines, links
        self._heap: list[tuple[float, int, str, Post | Delivery]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._is_closing = False
        for line in lines.values():
            line.open()

    def post(self, post: Post) -> None:
        """Sends a message when it is due; those of one moment in the order in which they were posted."""
        self._put(post.due_s, post.stream, post)

    @property
    def has_listener(self) -> bool:
        """Whether somebody listens to the robot."""
        robot = self._lines["robot"]
        return isinstance(robot, RobotLine) and robot.has_listener

    def close(self) -> None:
        """Sends what is due within a second and closes the sockets."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self.join()

    def run(self) -> None:
        """The thread."""
        while not self._is_done():
            self._look_after_sockets(self._clock.now())
            due = self._next()
            if due is None:
                continue
            stream, item = due
            now = self._clock.now()
            deliveries = [item] if isinstance(item, Delivery) else self._leave(item, now)
            for delivery in deliveries:
                if delivery.at_s <= now:
                    self._arrive(stream, delivery, now)
                else:
                    self._put(delivery.at_s, stream, delivery)
        for line in self._lines.values():
            line.close(LINGER_MS)

    def _put(self, due_s: float, stream: str, item: Post | Delivery) -> None:
        with self._changed:
            heapq.heappush(self._heap, (due_s, next(self._order), stream, item))
            self._changed.notify()

    def _next(self) -> tuple[str, Post | Delivery] | None:
        """Returns what is due as soon as something is; None where nothing is for a while."""
        with self._changed:
            now = self._clock.now()
            wait = self._heap[0][0] - now if self._heap else _LONGEST_WAIT_S
            if wait > 0:
                self._changed.wait(min(wait, _LONGEST_WAIT_S))
            if not self._heap or self._heap[0][0] > self._clock.now():
                return None
            _, _, stream, item = heapq.heappop(self._heap)
            return stream, item

    def _is_done(self) -> bool:
        """Whether it is to close, and what was due within a second has been sent."""
        with self._changed:
            return self._is_closing and (not self._heap or self._heap[0][0] > self._clock.now() + 1.0)

    def _look_after_sockets(self, now: float) -> None:
        """Closes those of senders that are down, opens those of senders that are back, sees who listens."""
        for stream, line in self._lines.items():
            is_down = self._links[stream][1].is_down(now)
            if is_down and line.is_open:
                self.counts[stream]["restarts"] += 1
                line.close()
            elif not is_down and not line.is_open:
                with contextlib.suppress(zmq.ZMQError):  # The port is not free yet.
                    line.open()
            if isinstance(line, RobotLine):
                line.look()

    def _leave(self, post: Post, now: float) -> list[Delivery]:
        sent, counts = self.sent[post.stream], self.counts[post.stream]
        if not self._lines[post.stream].is_open:
            counts["not sent while down"] += 1
            return []
        tag = len(sent.sent_s)
        for values, value in (
            (sent.taken_s, post.taken_s),
            (sent.stamped_s, post.stamped_s),
            (sent.sent_s, now),
            (sent.arrived_s, float("nan")),
            (sent.late_s, now - post.due_s),
        ):
            values.append(value)
        counts["sent"] += 1
        return self._links[post.stream][0].pass_on(post.make(now), tag, now)

    def _arrive(self, stream: str, delivery: Delivery, now: float) -> None:
        if not self._lines[stream].send(delivery.parts):
            self.counts[stream]["nobody took it"] += 1
        elif delivery.tag is not None:
            self.sent[stream].arrived_s[delivery.tag] = now
