"""phantom.lab as a process: its streams as the lab's programs would read them, and what it makes of commands."""

import json
import socket
import struct
import time

import numpy as np
import pytest
import zmq

from tests.commands import error_line, run_command, start_command
from tests.vla_jax.live.small_lab import free_ports
from vla_jax.recordings.discovery import find_episodes
from vla_jax.recordings.windows import WindowsReader


class Client:
    """Sockets as the lab's receivers have them, and everything that came: nothing of vla_jax is used."""

    def __init__(self, robot_port: int, command_port: int, camera_port: int, sensor_port: int) -> None:
        self.context = zmq.Context()
        self.pictures = self.context.socket(zmq.PULL)
        self.pictures.bind(f"tcp://127.0.0.1:{camera_port}")
        self.sensor = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sensor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sensor.bind(("127.0.0.1", sensor_port))
        self.commands = self.context.socket(zmq.PUSH)
        self.commands.connect(f"tcp://127.0.0.1:{command_port}")
        self.robot = self.context.socket(zmq.SUB)
        self.robot.connect(f"tcp://127.0.0.1:{robot_port}")
        self.robot.subscribe(b"")
        self.poller = zmq.Poller()
        for each in (self.pictures, self.sensor, self.robot):
            self.poller.register(each, zmq.POLLIN)
        self.states, self.rows, self.headers = [], [], []
        self.has_ended = False

    def receive(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (remaining := ends - time.monotonic()) > 0 and not self.has_ended:
            for source, _ in self.poller.poll(1000 * remaining):
                if source is self.robot:
                    topic, body = self.robot.recv_multipart()
                    self.has_ended = topic == b"episode_end" and body == b"finished"
                    if topic == b"robot_state":
                        self.states.append((*struct.unpack("<ddf12f", body), time.time()))
                elif source is self.pictures:
                    header, jpeg = self.pictures.recv_multipart()
                    self.headers.append(json.loads(header))
                    assert len(jpeg) == self.headers[-1]["size"]
                else:
                    datagram = self.sensor.recv(65535)
                    (count,) = struct.unpack_from("<I", datagram)
                    assert len(datagram) == 4 + 4120 * count
                    self.rows += [struct.unpack_from("<ddf", datagram, 4 + 4120 * i) for i in range(count)]

    def send(self, **command) -> None:
        self.commands.send(json.dumps(command).encode())

    def close(self) -> None:
        self.sensor.close()
        self.context.destroy(linger=0)


def start_lab(out, *options):
    """Starts the lab on any ports and returns its process and the four ports."""
    free = free_ports()
    camera_port, sensor_port = free.camera_port, free.sensor_port
    process = start_command(
        "phantom.lab", out, "--robot-port", 0, "--command-port", 0, "--camera-port", camera_port,
        "--sensor-port", sensor_port, "--pause", 0.3, *options,
    )  # fmt: skip
    words = process.stdout.readline().replace(",", "").split()
    robot_port, command_port = (int(word.rpartition(":")[2]) for word in (words[2], words[4]))
    return process, (robot_port, command_port, camera_port, sensor_port)


@pytest.fixture
def lab(tmp_path):
    """Yields the lab with a sensor clock 3 s ahead, and a client; whatever happens both end."""
    process, ports = start_lab(tmp_path / "lab", "--clock-offset", 3, "--episodes", 1)
    client = Client(*ports)
    yield process, client, tmp_path / "lab"
    client.close()
    process.kill()
    process.communicate()


def test_a_client_of_raw_sockets_moves_the_arm(lab):
    process, client, out = lab
    while not client.states:
        client.receive(0.1)
    first = np.array(client.states[0][9:15])
    for _ in range(10):
        client.send(cmd="dpose", dp=[0.1, 0, 0, 0, 0, 0])
        client.receive(0.1)
    client.commands.send(b"\xff no command")
    client.receive(1.0)
    rest = np.array([state[9:15] for state in client.states[-20:]])
    moved = rest[-1] - first
    # Ten commands, what the last one's velocity adds until it expires, and what it does where one comes late.
    assert 0.9 < moved[0] < 4.5
    assert np.abs(moved[1:3]).max() < 0.2
    assert np.ptp(rest[:, 0]) < 0.05
    states = np.array(client.states)
    np.testing.assert_allclose(np.diff(states[:, 0]), 0.01, atol=1e-4)
    assert np.median(states[:, -1] - states[:, 0]) < 0.1
    times = np.array([row[0] for row in client.rows])
    # Some datagrams find the kernel's buffer full where this process is held up; no row is elsewhere than it should be.
    apart = np.diff(times) * 650
    np.testing.assert_allclose(apart, np.rint(apart), atol=0.05)
    assert np.median(apart) == pytest.approx(1.0, abs=0.05)
    assert np.median([row[1] - row[0] for row in client.rows]) < 1.0
    assert abs(times[-1] - states[-1, 0] - 3.0) < 1.0
    names = {"ZED_41182735_left", "ZED_49429257_left", "ZED_44377151_left"}
    assert {header["camera"] for header in client.headers} == names
    process.terminate()
    process.wait(timeout=20)
    content = json.loads((out / "lab.json").read_text())
    assert content["commands"]["dpose"] == 10
    assert content["commands"]["damaged"] == 1
    assert content["commands"]["expired"] >= 1
    assert content["success"] is None  # It was cut short.
    with np.load(out / "truth.npz") as truth:
        sensor = truth["sensor"]
    np.testing.assert_allclose(sensor[:, 1] - sensor[:, 0], 3.0, atol=1e-6)
    assert np.nanmin(sensor[:, 3] - sensor[:, 2]) >= 0


def test_what_the_demonstrator_does_is_recorded_through_the_sockets(tmp_path):
    lab, (robot_port, _, camera_port, sensor_port) = start_lab(
        tmp_path / "lab", "--demonstrator", "--faults", "lost=0.02", "sensor.reordered=0.05"
    )
    try:
        done = run_command(
            "record", tmp_path / "episodes", "--prompt", "Insert", "--robot-port", robot_port,
            "--camera-port", camera_port, "--sensor-port", sensor_port, "--bind", "127.0.0.1", "--seconds", 4,
        )  # fmt: skip
    finally:
        lab.kill()
        lab.communicate()
    assert "1 episodes" in done.stdout
    (found,) = find_episodes([str(tmp_path / "episodes")])
    recording = WindowsReader().read(found.path)
    assert not recording.faults
    assert not recording.notes
    assert recording.instruction == "Insert"
    seconds = recording.times[-1] - recording.times[0]
    assert seconds > 2.5
    assert len(recording.times) == pytest.approx(100 * seconds, rel=0.06)
    rows = recording.sensor.end_times
    assert len(rows) == pytest.approx(650 * (rows[-1] - rows[0]), rel=0.1)
    assert sorted(recording.views) == ["View1", "View2", "View3"]


def test_a_port_that_is_taken_is_told(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_command("phantom.lab", tmp_path / "lab", "--robot-port", port, status=2)
    assert "cannot listen on 127.0.0.1: Address already in use" in error_line(done)
