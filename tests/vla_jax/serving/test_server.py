"""The protocol over real sockets, with clients that keep to it and clients that do not."""

import http.client
import socket
import struct
import threading
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.vla_jax.serving.servers import HANDSHAKE, HOST, frame, raw_connection, request, running
from tests.waiting import wait_until
from vla_jax.serving.limits import Limits, message_bytes
from vla_jax.serving.messages import pack, unpack
from vla_jax.serving.service import PolicyService

KEY = "correct-horse-battery"


@pytest.fixture(scope="module")
def server(service):
    with running(service, limits=Limits(open_s=1.0)) as started:
        yield started


def join(server, **options):
    """Connects as the stock client does, and returns the connection and the metadata."""
    options = {"compression": None, "max_size": None, "proxy": None} | options
    connection = connect(f"ws://{HOST}:{server.port}", **options).__enter__()
    return connection, unpack(connection.recv(timeout=10))


def ask(connection, message):
    connection.send(message if isinstance(message, str | bytes) else pack(message))
    reply = connection.recv(timeout=30)
    return reply if isinstance(reply, str) else unpack(reply)


def test_metadata_first_then_a_reply_to_each_request(server, policy):
    connection, metadata = join(server)
    with connection:
        assert metadata["actions"] == {
            "names": ["dx", "dy", "dz", "da", "db", "dr", "gripper"],
            "units": ["mm", "mm", "mm", "deg", "deg", "deg", ""],
            "horizon": 8, "rate_hz": 10.0, "low": None, "high": None,
        }  # fmt: skip
        assert (metadata["checkpoint"]["step"], metadata["checkpoint"]["path"]) == (7, "run/checkpoints/7")
        assert metadata["requests"].keys() == {"features"}
        assert metadata["requests"]["features"]["sensor"]["shape"] == [13, 5]
        assert metadata["limits"]["max_batch"] == 4
        replies = [ask(connection, request()) for _ in range(3)]
    expected = policy.predict(
        *(request()[name][None] for name in ("vl", "vl_mask", "sensor")), np.ones(1, bool)
    )
    for number, reply in enumerate(replies):
        np.testing.assert_array_equal(reply["actions"], expected[0])
        assert reply["actions"].shape == (8, 7)
        assert reply["policy_timing"]["infer_ms"] > 0
        assert ("prev_total_ms" in reply["server_timing"]) == (number > 0)


def test_a_refused_request_is_a_text_and_the_connection_goes_on(server):
    connection, _ = join(server)
    with connection:
        for message, told in (
            (request() | {"sensor": 3, "senser": 4}, ("sensor is 3", "'senser' is unknown")),
            ("text", ("requests are msgpack in binary frames",)),
            (b"\xc1", ("no msgpack message",)),
            (b"", ("no msgpack message",)),
            ({}, ("vl is missing",)),
        ):
            reply = ask(connection, message)
            assert isinstance(reply, str)
            assert reply.startswith("request refused: ")
            assert "\n" not in reply
            assert all(text in reply for text in told), reply
            assert ask(connection, request())["actions"].shape == (8, 7)


def test_a_message_in_pieces_is_one(server):
    connection, _ = join(server)
    message = pack(request())
    with connection:
        connection.send([message[:7], message[7:100], message[100:]])
        assert unpack(connection.recv(timeout=10))["actions"].shape == (8, 7)


def test_a_message_that_is_too_long_ends_the_connection(server, service):
    connection, metadata = join(server)
    limit = message_bytes(service.spec)
    assert metadata["limits"]["max_message_bytes"] == limit
    with connection:
        assert ask(connection, bytes(limit)).startswith("request refused")
        connection.send(bytes(limit + 1))
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=10)
        assert closed.value.rcvd.code == 1009
    assert server.health() == (200, "OK\n")


def test_health_answers_in_ten_ms_while_predictions_run(policy):
    """The policy computes without pause; of the loop nothing is held up."""
    calls = []

    class Slow:
        def __getattr__(self, name):
            return getattr(policy, name)

        def infer(self, *arguments):
            calls.append(time.perf_counter())
            time.sleep(0.3)
            return policy.infer(*arguments)

    service, took = PolicyService(Slow(), max_batch=1), []
    with running(service) as server:
        connection, _ = join(server)
        with connection:
            connection.send(pack(request()))
            while not calls:
                time.sleep(0.001)
            while time.perf_counter() - calls[0] < 0.25:
                begun = time.perf_counter()
                assert server.health() == (200, "OK\n")
                took.append(time.perf_counter() - begun)
            connection.recv(timeout=10)
    service.close()
    # The fastest: what else the machine does is no fault of the server's, and a blocked loop would hold up all.
    assert min(took) < 0.1, took


def status_of(port, *, path="/", **headers):
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    connection.request("GET", path, headers=headers)
    reply = connection.getresponse()
    return reply.status, reply.read().decode()


def test_only_who_has_the_key_comes_in(service):
    with running(service, api_key=KEY) as server:
        connection, _ = join(server, additional_headers={"Authorization": f"Api-Key {KEY}"})
        with connection:
            assert ask(connection, request())["actions"].shape == (8, 7)
        for headers in ({}, {"Authorization": f"Api-Key {KEY}x"}, {"Authorization": f"Bearer {KEY}"}):
            with pytest.raises(InvalidStatus) as refused:
                join(server, additional_headers=headers)
            assert refused.value.response.status_code == 401
        assert server.health() == (200, "OK\n")


def test_a_page_in_a_browser_does_not_come_in(server):
    with pytest.raises(InvalidStatus) as refused:
        join(server, origin="http://127.0.0.1:8000")
    assert refused.value.response.status_code == 403


def test_who_does_not_speak_websocket_is_told(server):
    assert status_of(server.port)[0] == 426
    assert status_of(server.port, path="/healthz") == (200, "OK\n")


def test_one_client_too_many_is_told_to_come_later(service):
    with running(service, limits=Limits(max_clients=2)) as server:
        first, _ = join(server)
        second, _ = join(server)
        with pytest.raises(InvalidStatus) as refused:
            join(server)
        assert refused.value.response.status_code == 503
        assert b"2 clients are here" in refused.value.response.body
        assert server.health() == (200, "OK\n")
        second.close()
        wait_until(lambda: can_join(server))
        first.close()


def can_join(server):
    try:
        connection, _ = join(server)
    except InvalidStatus:
        return False
    connection.close()
    return True


def test_connections_that_say_nothing_or_half_hold_nobody_up(server):
    silent = [socket.create_connection((HOST, server.port)) for _ in range(20)]
    for half, opened in enumerate(silent[10:]):
        opened.sendall(HANDSHAKE[: 10 * half])
    stuck = [raw_connection(server.port) for _ in range(5)]
    for opened in stuck:
        opened.sendall(frame(pack(request()))[:50])
    connection, _ = join(server)
    with connection:
        assert ask(connection, request())["actions"].shape == (8, 7)
    assert server.health() == (200, "OK\n")
    # Those without a handshake are cut off after `open_s`.
    for opened in silent:
        opened.settimeout(5)
        while opened.recv(1000):
            pass
    for opened in (*silent, *stuck):
        opened.close()


def test_who_does_not_read_holds_nobody_up_and_is_cut_off(service):
    small = 4096
    with running(service, limits=Limits(send_s=0.5), send_buffer=small) as server, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, small)
        deaf.connect((HOST, server.port))
        deaf.sendall(HANDSHAKE + b"\r\n")
        deaf.settimeout(0.1)
        connection, _ = join(server)
        message, is_cut_off, begun = frame(pack(request())), False, time.monotonic()
        with connection:
            while not is_cut_off:
                # Replies fill the buffers on their way; then the server no longer reads what this one sends.
                try:
                    deaf.sendall(message)
                except TimeoutError:
                    assert ask(connection, request())["actions"].shape == (8, 7)
                except OSError:
                    is_cut_off = True
                assert time.monotonic() - begun < 60


def test_an_idle_client_is_sent_away_and_a_dead_one_is_noticed(service):
    with running(service, limits=Limits(idle_s=0.3)) as server:
        connection, _ = join(server)
        with pytest.raises(ConnectionClosed) as closed:
            connection.recv(timeout=10)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "idle for too long")
    with running(service, limits=Limits(ping_s=0.3)) as server, raw_connection(server.port) as dead:
        # Pings are not answered.
        received = b""
        while piece := dead.recv(65536):
            received += piece
        assert struct.pack(">H", 1011) in received


def damaged_frames(rng, count):
    """Yields frames with wrong contents, wrong headers, or pieces of them."""
    sound = pack(request())
    for number in range(count):
        kind = number % 4
        if kind == 0:
            yield rng.bytes(int(rng.integers(1, 200)))
        elif kind == 1:
            changed = bytearray(frame(sound))
            for place in rng.integers(0, len(changed), 5):
                changed[place] = rng.integers(256)
            yield bytes(changed)
        elif kind == 2:
            changed = bytearray(sound)
            for place in rng.integers(0, min(len(changed), 80), 3):
                changed[place] = rng.integers(256)
            yield frame(bytes(changed))
        else:
            yield frame(sound, int(rng.integers(16)))[: int(rng.integers(2, len(sound)))]


def throw(server, frames):
    """Sends frames one after another; a new connection where the server has closed the last."""
    opened = raw_connection(server.port)
    for damaged in frames:
        try:
            opened.sendall(damaged)
            opened.settimeout(0.001)
            is_closed = opened.recv(65536) == b""
        except TimeoutError:
            is_closed = False
        except OSError:
            is_closed = True
        if is_closed or len(damaged) % 7 == 0:
            opened.close()
            opened = raw_connection(server.port)
    opened.close()


def test_three_hundred_damaged_frames(server):
    throw(server, damaged_frames(np.random.default_rng(0), 300))
    connection, _ = join(server)
    with connection:
        assert ask(connection, request())["actions"].shape == (8, 7)


def test_a_hundred_damaged_handshakes(server):
    rng = np.random.default_rng(1)
    for _ in range(100):
        changed = bytearray(HANDSHAKE + b"\r\n")
        for place in rng.integers(0, len(changed), 3):
            changed[place] = rng.integers(256)
        with socket.create_connection((HOST, server.port)) as opened:
            opened.sendall(changed)
    assert server.health() == (200, "OK\n")


@pytest.mark.slow
def test_twenty_thousand_damaged_frames_cost_no_memory(server):
    throw(server, damaged_frames(np.random.default_rng(2), 1000))
    before = resident_bytes()
    throw(server, damaged_frames(np.random.default_rng(3), 20_000))
    assert resident_bytes() - before < 30e6
    connection, _ = join(server)
    with connection:
        assert ask(connection, request())["actions"].shape == (8, 7)


def resident_bytes():
    with open("/proc/self/statm") as file:
        return 4096 * int(file.read().split()[1])


@pytest.mark.slow
def test_two_hundred_clients_at_once(service, policy):
    many = 200
    with running(service, limits=Limits(max_clients=many)) as server:
        together, faults = threading.Barrier(many), []

        def act(number):
            try:
                connection, _ = join(server, open_timeout=60)
                with connection:
                    together.wait(60)
                    replies = [ask(connection, request(number)) for _ in range(5)]
                sensor = request(number)
                arrays = (sensor[name][None] for name in ("vl", "vl_mask", "sensor"))
                expected = policy.predict(*arrays, np.ones(1, bool))[0]
                for reply in replies:
                    np.testing.assert_allclose(reply["actions"], expected, rtol=1e-5, atol=1e-6)
            except Exception as fault:
                faults.append(fault)

        threads = [threading.Thread(target=act, args=(number,)) for number in range(many)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert faults == []
        assert server.health() == (200, "OK\n")
