"""A policy acts from live streams over real sockets: what the arm is sent when all is well, and when it is not."""

import json
import signal
import socket
import time

import numpy as np
import pytest
import zmq

from tests.commands import start_command
from tests.vla_jax.live.live_policies import PROMPT, write_lab_policy
from tests.vla_jax.live.small_lab import SmallLab, free_ports, port_options
from vla_jax.live import wire
from vla_jax.recordings.unfinished import SENSOR_FILE, appended_rows


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("live")
    write_lab_policy(root / "run", root / "backbone")
    return root


def arguments(places, ports, *options):
    run = ("live", places / "run", "--backbone", places / "backbone", "--prompt", PROMPT)
    return (*run, "--bind", "127.0.0.1", *port_options(ports), *options)


def is_zero(delta):
    return not np.any(delta)


def moving(lab, since):
    return lambda: any(not is_zero(delta) for _, delta in lab.moves(since))


def holding(lab, since):
    return lambda: any(is_zero(delta) for _, delta in lab.moves(since))


def staying(lab, since):
    """Whether the last commands all held the arm."""

    def stays():
        last = lab.moves(since)[-4:]
        return len(last) == 4 and all(is_zero(delta) for _, delta in last)

    return stays


def wait_until_it_moves(lab, process, since=0.0):
    """Waits until the policy is loaded and acts, however long a busy machine takes."""
    moves = moving(lab, since)
    lab.wait_for(lambda: moves() or process.poll() is not None, 240)
    if process.poll() is not None or not moves():
        process.kill()
        raise AssertionError(process.communicate())


def send_damaged(ports, seed, each):
    """Sends what nobody should be made to do anything by, to every socket that we listen at."""
    rng = np.random.default_rng(seed)
    context, udp = zmq.Context(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    push = context.socket(zmq.PUSH)
    push.connect(f"tcp://127.0.0.1:{ports.camera_port}")
    for _ in range(each):
        size = int(rng.integers(0, 400))
        noise = rng.bytes(size)
        udp.sendto(noise, ("127.0.0.1", ports.sensor_port))
        udp.sendto(b"\x01\0\0\0" + rng.bytes(4120), ("127.0.0.1", ports.sensor_port))
        header = {
            "camera": rng.choice(list(wire.CAMERAS)),
            "timestamp": float(rng.random() * 2e9),
            "size": size,
        }
        parts = [[noise], [noise] * 3, [json.dumps(header).encode(), noise]]
        # A picture that only its decoder finds damaged.
        torn = b"\xff\xd8" + noise + b"\xff\xd9"
        name = wire.CAMERAS[str(rng.choice(["View1", "View2"]))]
        header = {"camera": name, "timestamp": time.time(), "size": len(torn)}
        parts.append([json.dumps(header).encode(), torn])
        for one in parts[:3]:
            push.send_multipart(one)
    push.send_multipart(parts[3])
    push.close(linger=2000)
    context.term()
    udp.close()


PATIENCE_S = 30.0
"""For what must happen, whenever a busy machine comes to it."""
# How much later than promised things may happen in the slow tests, which are for a machine that does little else.
SLACK_S = 0.4
HELD_WITHIN_S = 0.3 + SLACK_S


def test_the_arm_is_moved_held_and_stopped(places, tmp_path):
    ports = free_ports()
    with SmallLab(ports) as lab:
        options = ("--log", tmp_path / "log", "--record", tmp_path / "episodes")
        process = start_command(*arguments(places, ports, *options))
        wait_until_it_moves(lab, process)

        # At most a command at each tick, however late ticks are.
        begun = time.monotonic()
        time.sleep(2.0)
        assert 5 <= len(lab.moves(begun)) <= 21

        for sender in (lab.robot, lab.sensor, lab.cameras):
            sender.kill()
            assert lab.wait_for(staying(lab, time.monotonic()), PATIENCE_S) is not None
            sender.start()
            assert lab.wait_for(moving(lab, time.monotonic()), PATIENCE_S) is not None

        begun = time.monotonic()
        lab.noise = np.random.default_rng(1)
        send_damaged(ports, 0, 200)
        assert lab.wait_for(moving(lab, begun), PATIENCE_S) is not None
        assert process.poll() is None

        # The episode ends, and the next state begins another.
        begun = time.monotonic()
        lab.end_episode()
        assert lab.wait_for(holding(lab, begun), PATIENCE_S) is not None
        assert lab.wait_for(moving(lab, time.monotonic()), PATIENCE_S) is not None

        process.send_signal(signal.SIGTERM)
        assert lab.wait_for(lambda: isinstance(lab.commands[-1][1], wire.Stop), PATIENCE_S) is not None
        output, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert "stopped: signal 15" in output
    lines = [json.loads(line) for line in (tmp_path / "log" / "ticks.jsonl").read_text().splitlines()]
    events = [line["event"] for line in lines if line["kind"] == "event"]
    assert events.count("episode_begin") >= 2
    assert events[-1] == "stop"
    ticks = [line for line in lines if line["kind"] == "tick"]
    reasons = {reason for tick in ticks for reason in tick["reasons"]}
    assert {"state too old", "sensor too old", "pictures too old"} <= reasons | {
        line["text"] for line in lines if line["kind"] == "event"
    }
    running = [tick for tick in ticks if tick["mode"] == "run"]
    # The sensor's clock is three seconds ahead; its rows are as old as they are nevertheless.
    assert 0 < np.median([tick["age_ms"]["sensor"] for tick in running]) < 1000
    summary = json.loads((tmp_path / "log" / "summary.json").read_text())
    assert summary["ended"] == "signal 15"
    assert summary["counts"]["sensor/damaged"] >= 200
    assert summary["counts"]["cameras/damaged"] >= 400
    assert summary["counts"]["robot/damaged"] >= 100
    # The robot's silence ended a recording, too, if it was long enough.
    assert len(list((tmp_path / "episodes").rglob("metadata.json"))) >= 2


@pytest.mark.slow
def test_in_time_on_a_machine_that_does_nothing_else(places, tmp_path):
    ports = free_ports()
    with SmallLab(ports) as lab:
        process = start_command(*arguments(places, ports, "--log", tmp_path / "log"))
        wait_until_it_moves(lab, process)
        begun = time.monotonic()
        time.sleep(5.0)
        moves = lab.moves(begun)
        assert 48 <= len(moves) <= 51
        assert np.median(np.diff([at for at, _ in moves])) == pytest.approx(0.1, abs=0.01)
        assert all(not is_zero(delta) for _, delta in moves)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert lab.wait_for(lambda: isinstance(lab.commands[-1][1], wire.Stop), PATIENCE_S) is not None
        assert lab.commands[-1][0] - asked < 0.1 + SLACK_S
        process.communicate(timeout=30)
    summary = json.loads((tmp_path / "log" / "summary.json").read_text())
    assert summary["statistics"]["late_ms"]["p50"] < 5


@pytest.mark.slow
def test_senders_that_come_and_go_at_random_moments(places, tmp_path):
    ports, rng = free_ports(), np.random.default_rng(0)
    with SmallLab(ports) as lab:
        process = start_command(*arguments(places, ports, "--log", tmp_path / "log"))
        wait_until_it_moves(lab, process)
        late = []
        for _ in range(20):
            for sender in (lab.robot, lab.sensor, lab.cameras):
                time.sleep(rng.uniform(0.1, 0.6))
                sender.kill()
                killed = time.monotonic()
                held = lab.wait_for(holding(lab, killed), 3)
                assert held is not None
                time.sleep(rng.uniform(0.0, 1.0))
                sender.start()
                returned = lab.wait_for(moving(lab, time.monotonic()), 5)
                assert returned is not None
                late.append((held, returned))
        assert np.median([held for held, _ in late]) < 0.3
        assert max(held for held, _ in late) < HELD_WITHIN_S
        assert max(returned for _, returned in late) < 1.0 + SLACK_S
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors


@pytest.mark.slow
def test_whatever_a_killed_run_had_logged_and_recorded_is_there(places, tmp_path):
    ports, rng = free_ports(), np.random.default_rng(0)
    with SmallLab(ports) as lab:
        for number in range(20):
            begun, log, episodes = time.monotonic(), tmp_path / f"log{number}", tmp_path / f"episodes{number}"
            process = start_command(*arguments(places, ports, "--log", log, "--record", episodes))
            wait_until_it_moves(lab, process, begun)
            time.sleep(1.0 + rng.uniform(0, 1))
            process.kill()
            killed = time.time()
            process.communicate()
            time.sleep(0.3)
            sent = len(lab.commands)
            time.sleep(0.5)
            assert len(lab.commands) == sent  # Nothing of it goes on; the arm's own expiry stops it.
            lines = (log / "ticks.jsonl").read_text().splitlines()
            assert killed - json.loads(lines[-2])["timestamp"] < 1.0
            (states,) = episodes.rglob("robot_states.csv")
            assert json.loads((states.parent / "metadata.json").read_text())["unfinished"] is True
            assert killed - float(states.read_text().splitlines()[-2].partition(",")[0]) < 1.0
            assert killed - appended_rows(states.parent / SENSOR_FILE)["time"][-1] < 1.0
