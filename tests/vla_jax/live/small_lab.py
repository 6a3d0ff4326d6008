"""The lab's senders and its arm, each of which a test can stop and start: constant readings, real sockets and time."""

import io
import itertools
import socket
import threading
import time

import numpy as np
import zmq
from PIL import Image

from tests.vla_jax.live.live_policies import FORCE, VIEWS
from vla_jax.live import wire
from vla_jax.live.ports import LabPorts

POSE = np.array([190.0, 0.0, 60.0, 0.0, 0.0, 0.0])


def free_ports():
    """Returns ports of the loopback that nobody uses."""
    sockets = [
        socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_STREAM,) * 3 + (socket.SOCK_DGRAM,)
    ]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        camera, robot, command, sensor = (one.getsockname()[1] for one in sockets)
    finally:
        for one in sockets:
            one.close()
    return LabPorts(
        bind="127.0.0.1", camera_port=camera, robot_port=robot, sensor_port=sensor, command_port=command
    )


def port_options(ports):
    names = ("camera_port", "robot_port", "sensor_port", "command_port")
    return [word for name in names for word in (f"--{name.replace('_', '-')}", getattr(ports, name))]


def jpeg(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (56, 56, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def damaged_state(rng):
    """Returns parts of a message that begins like one of the robot's."""
    topic = (wire.STATE_TOPIC, wire.END_TOPIC)[int(rng.integers(2))]
    size = (68, 67, 0, 300)[int(rng.integers(4))]
    return [topic, b"\xff" * 8 + rng.bytes(size)][: int(rng.integers(1, 3))]


class Sender:
    """A thread that calls `send` at a rate with the socket that `connect` makes; killed and started at will."""

    def __init__(self, hz, connect, send):
        self.hz, self._connect, self._send = hz, connect, send
        self._thread = None

    def start(self):
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._closing,), daemon=True)
        self._thread.start()

    def kill(self):
        self._closing.set()
        self._thread.join()

    def _run(self, closing):
        made = self._connect()
        try:
            begun = time.monotonic()
            for number in itertools.count():
                left = begun + number / self.hz - time.monotonic()
                if closing.wait(max(left, 0.0)):
                    return
                self._send(made, number)
        finally:
            made.close()


class SmallLab:
    """robot, cameras, sensor: the senders. commands: (monotonic time, command) as the arm gets them.

    noise: where it is a generator, the robot sends damaged messages between its states.
    """

    def __init__(self, ports, views=VIEWS, sensor_offset_s=3.0):
        self.ports, self.views, self.commands = ports, views, []
        self.pose = POSE.copy()
        self.force = FORCE
        self.noise = None
        self._sensor_offset_s = sensor_offset_s
        self._context = zmq.Context()
        self._jpegs = [jpeg(i) for i in range(5)]
        rng = np.random.default_rng(0)
        self._rows = rng.normal(size=(13, wire.NUM_CHANNELS)).astype(np.float32)
        self.robot = Sender(100, self._bind_robot, self._send_state)
        self.cameras = Sender(5, self._push_pictures, self._send_pictures)
        self.sensor = Sender(50, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), self._send_rows)
        self._ends = threading.Event()
        self._closing = threading.Event()
        self._arm = threading.Thread(target=self._obey, daemon=True)

    def __enter__(self):
        self._arm.start()
        for sender in (self.robot, self.cameras, self.sensor):
            sender.start()
        return self

    def __exit__(self, *_):
        for sender in (self.robot, self.cameras, self.sensor):
            sender.kill()
        self._closing.set()
        self._arm.join()
        self._context.destroy(linger=0)

    def end_episode(self):
        """Sends the end before the next state."""
        self._ends.set()

    def moves(self, since=0.0):
        """Returns (time, delta) of the moves that came since a monotonic time."""
        return [(at, c.delta) for at, c in list(self.commands) if at >= since and isinstance(c, wire.MoveBy)]

    def wait_for(self, happened, seconds=30.0):
        """Waits until something has happened; returns how long it took, None where it has not."""
        begun = time.monotonic()
        while time.monotonic() < begun + seconds:
            if happened():
                return time.monotonic() - begun
            time.sleep(0.002)
        return None

    def _obey(self):
        pull = self._context.socket(zmq.PULL)
        pull.bind(f"tcp://127.0.0.1:{self.ports.command_port}")
        pull.setsockopt(zmq.RCVTIMEO, 50)
        while not self._closing.is_set():
            try:
                message = pull.recv()
            except zmq.Again:
                continue
            self.commands.append((time.monotonic(), wire.decode_command(message)))
        pull.close()

    def _bind_robot(self):
        publisher = self._context.socket(zmq.PUB)
        publisher.setsockopt(zmq.LINGER, 0)
        publisher.bind(f"tcp://127.0.0.1:{self.ports.robot_port}")
        return publisher

    def _send_state(self, publisher, number):
        if self._ends.is_set():
            self._ends.clear()
            publisher.send_multipart(wire.encode_end())
        for _ in range(0 if self.noise is None else 5):
            publisher.send_multipart(damaged_state(self.noise))
        now = time.time()
        publisher.send_multipart(
            wire.encode_state(wire.RobotState(now - 0.001, now, 0.0, np.zeros(6), self.pose))
        )

    def _push_pictures(self):
        push = self._context.socket(zmq.PUSH)
        push.setsockopt(zmq.LINGER, 0)
        push.setsockopt(zmq.SNDHWM, 5)
        push.connect(f"tcp://127.0.0.1:{self.ports.camera_port}")
        return push

    def _send_pictures(self, push, number):
        for view in self.views:
            picture = wire.Picture(view, time.time(), self._jpegs[number % 5])
            try:
                push.send_multipart(wire.encode_picture(picture), zmq.NOBLOCK)
            except zmq.Again:
                return

    def _send_rows(self, sender, number):
        # By a clock that is ahead of ours.
        sent = time.time() + self._sensor_offset_s
        times = sent - np.arange(12, -1, -1) / 650
        rows = self._rows.copy()
        rows[:, 0] = self.force
        batch = wire.SensorBatch(times, np.full(13, sent), rows)
        sender.sendto(wire.encode_sensor(batch), ("127.0.0.1", self.ports.sensor_port))
