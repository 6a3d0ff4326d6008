"""The lab's streams over real sockets: times on one clock, damaged messages dropped, nobody held up."""

import socket
import time

import numpy as np
import pytest
import zmq

from tests.vla_jax.live.small_lab import POSE, SmallLab, damaged_state, free_ports
from tests.waiting import wait_until
from vla_jax.errors import UserError
from vla_jax.live import wire
from vla_jax.live.clock import LocalClock
from vla_jax.live.lab_link import LabLink
from vla_jax.live.receivers import Receivers


class Kept:
    def __init__(self):
        self.states, self.pictures, self.batches, self.ends = [], [], [], []

    def state(self, state):
        self.states.append(state)

    def picture(self, picture):
        self.pictures.append(picture)

    def sensor(self, batch):
        self.batches.append(batch)

    def episode_end(self, received):
        self.ends.append(received)


def send_noise(ports, rng, number):
    context, udp = zmq.Context(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    push = context.socket(zmq.PUSH)
    push.connect(f"tcp://127.0.0.1:{ports.camera_port}")
    for i in range(number):
        noise = rng.bytes(int(rng.integers(0, 300)))
        udp.sendto(noise, ("127.0.0.1", ports.sensor_port))
        udp.sendto(b"\x01\0\0\0" + rng.bytes(4120), ("127.0.0.1", ports.sensor_port))
        push.send_multipart([noise] * int(rng.integers(1, 5)))
        if i % 20 == 0:
            time.sleep(0.002)
    push.close(linger=2000)
    context.term()
    udp.close()


def publish_noise(ports, rng, number):
    context = zmq.Context()
    publisher = context.socket(zmq.PUB)
    publisher.bind(f"tcp://127.0.0.1:{ports.robot_port}")
    time.sleep(1.0)  # Until we have subscribed.
    for i in range(number):
        publisher.send_multipart(damaged_state(rng))
        if i % 50 == 0:
            time.sleep(0.002)  # It drops what waits for long.
    publisher.close(linger=2000)
    context.term()


def test_everything_arrives_on_one_clock_and_noise_changes_nothing():
    ports, kept, clock = free_ports(), Kept(), LocalClock()
    receivers = Receivers(ports, kept, clock)
    receivers.start()
    try:
        with SmallLab(ports) as lab:
            wait_until(lambda: len(kept.states) > 50 and len(kept.batches) > 30 and len(kept.pictures) > 3)
            lab.noise = np.random.default_rng(1)
            send_noise(ports, np.random.default_rng(0), 300)
            lab.end_episode()
            wait_until(lambda: kept.ends)
            number = len(kept.batches)
            wait_until(lambda: len(kept.batches) > number + 10)
        for state in kept.states[20:]:
            assert -0.05 < state.received - state.time < 1.0
            np.testing.assert_array_equal(state.pose, POSE)
        for batch in kept.batches[20:]:
            # Its clock is three seconds ahead of ours.
            assert batch.offset == pytest.approx(-3.0, abs=0.05)
            assert -0.05 < batch.received - batch.times[-1] < 1.0
        assert {picture.view for picture in kept.pictures} == {"View1", "View2", "View3"}
        assert receivers.counts["cameras/damaged"] == 300
        assert receivers.counts["robot/damaged"] > 5
        assert receivers.counts["sensor/damaged"] >= 300
        assert receivers.failure is None
        assert {name: jumps for name, (jumps, _) in receivers.jumps.items()} == dict.fromkeys(
            ("cameras", "robot", "sensor"), 0
        )
    finally:
        receivers.close()


def test_times_that_cannot_be_are_dropped_and_an_arm_s_own_clock_is_not_believed():
    ports, kept = free_ports(), Kept()
    receivers = Receivers(ports, kept, LocalClock())
    row = np.zeros((1, wire.NUM_CHANNELS), np.float32)
    for _ in range(5):
        now = time.time()
        receivers._take_robot(wire.encode_state(wire.RobotState(77.0, now, 0.0, POSE, POSE)), now + 0.01)
        for taken in (now, now - 60.0, now + 60.0):
            batch = wire.SensorBatch(np.array([taken]), np.array([now]), row)
            receivers._take_sensor(wire.encode_sensor(batch), now + 0.01)
    assert [state.time for state in kept.states] == pytest.approx([state.received for state in kept.states])
    assert receivers.counts["robot/odd_origins"] == len(kept.states) == 3
    assert receivers.counts["sensor/odd_times"] == 12
    assert len(kept.batches) == 3
    receivers.close()


def test_a_sink_that_fails_ends_the_stream_and_is_told():
    class Broken(Kept):
        def state(self, state):
            raise RuntimeError("broken")

    ports = free_ports()
    receivers = Receivers(ports, Broken(), LocalClock())
    receivers.start()
    try:
        with SmallLab(ports):
            wait_until(lambda: receivers.failure is not None)
        assert receivers.failure == "robot: RuntimeError: broken"
    finally:
        receivers.close()


def test_an_address_that_is_taken_is_named():
    ports = free_ports()
    first = Receivers(ports, Kept(), LocalClock())
    first.start()
    try:
        with pytest.raises(
            UserError, match=r"cannot receive pictures at tcp://127.0.0.1:\d+: .*--camera-port"
        ):
            Receivers(ports, Kept(), LocalClock()).start()
    finally:
        first.close()


def test_commands_reach_whoever_is_there_and_nothing_is_sent_later():
    ports = free_ports()
    link = LabLink(ports, LocalClock(), start_command=wire.Start(pose=tuple(POSE)))
    link.open(Kept())
    try:
        action = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0], np.float32)
        assert not link.move(action)  # Nobody is there; it must not arrive when somebody is.
        with SmallLab(ports) as lab:
            wait_until(lambda: link.move(2 * action))
            assert link.stop()
            wait_until(lambda: len(lab.commands) == 2)
            wait_until(link.start)
            wait_until(lambda: len(lab.commands) == 3)
            commands = [command for _, command in lab.commands]
            np.testing.assert_allclose(commands[0].delta, 2 * action[:6])
            assert commands[1:] == [wire.Stop(), wire.Start(pose=tuple(POSE))]
    finally:
        link.close()


@pytest.mark.slow
def test_a_hundred_thousand_damaged_messages():
    import resource

    ports, kept = free_ports(), Kept()
    receivers = Receivers(ports, kept, LocalClock())
    receivers.start()
    try:
        rng = np.random.default_rng(1)
        send_noise(ports, rng, 5_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(19):
            send_noise(ports, rng, 5_000)
        publish_noise(ports, rng, 100_000)
        wait_until(lambda: receivers.counts["cameras/damaged"] >= 100_000, 60)
        assert receivers.counts["robot/damaged"] > 50_000
        assert not kept.ends
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
        assert not any((kept.states, kept.pictures, kept.batches))
        with SmallLab(ports):
            wait_until(lambda: kept.states and kept.pictures and kept.batches)
        assert receivers.failure is None
    finally:
        receivers.close()
