"""Our client: what it returns, and what it raises where nothing comes back."""

import contextlib
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from tests.commands import REPOSITORY
from tests.vla_jax.policy.policies import tiny_policy
from tests.vla_jax.serving.servers import HOST, request, running
from vla_jax.client import (
    ConnectionLost,
    NoReplyInTime,
    PolicyChanged,
    PolicyClient,
    PolicyClientError,
    RequestRefused,
    ServerUnreachable,
)
from vla_jax.serving.messages import pack, unpack
from vla_jax.serving.service import PolicyService

KEY = "correct-horse-battery"


@pytest.fixture(scope="module")
def service():
    service = PolicyService(tiny_policy(), max_batch=1)
    yield service
    service.close()


def test_actions_come_back(service):
    with running(service) as server, PolicyClient(HOST, server.port) as client:
        assert client.metadata["actions"]["horizon"] == 8
        reply = client.infer(request())
        assert reply["actions"].shape == (8, 7)
        assert reply["server_timing"]["infer_ms"] > 0


def test_a_refusal_is_an_exception_and_the_connection_goes_on(service):
    with running(service) as server, PolicyClient(HOST, server.port) as client:
        with pytest.raises(RequestRefused, match=r"vl is missing.*sensor has shape"):
            client.infer({"sensor": np.zeros(3)})
        with pytest.raises(RequestRefused, match="cannot be sent"):
            client.infer({"vl": object()})
        assert client.infer(request())["actions"].shape == (8, 7)


def test_a_key_is_sent(service):
    with running(service, api_key=KEY) as server:
        with PolicyClient(HOST, server.port, api_key=KEY) as client:
            assert client.infer(request())["actions"].shape == (8, 7)
        with pytest.raises(ServerUnreachable, match=r"HTTP 401 \(a key is needed"):
            PolicyClient(HOST, server.port, api_key="another")


def test_nobody_there(service):
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        port = bound.getsockname()[1]
    with pytest.raises(ServerUnreachable, match="cannot connect"):
        PolicyClient(HOST, port)
    with pytest.raises(ServerUnreachable, match="cannot connect"):
        PolicyClient("no.such.host.invalid", port)
    begun = time.monotonic()
    with pytest.raises(ServerUnreachable):
        PolicyClient(HOST, port, wait_s=0.5)
    assert time.monotonic() - begun >= 0.5
    assert issubclass(ServerUnreachable, PolicyClientError)


def test_a_server_that_is_being_started_is_waited_for(service):
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        port = bound.getsockname()[1]
    found = []
    waiting = threading.Thread(target=lambda: found.append(PolicyClient(HOST, port, wait_s=20)))
    waiting.start()
    time.sleep(0.3)
    with running(service, port=port):
        waiting.join(20)
        assert found[0].infer(request())["actions"].shape == (8, 7)
        found[0].close()


def test_a_lost_connection_is_told_and_the_next_call_connects_anew(service):
    with running(service) as server:
        client = PolicyClient(HOST, server.port)
        client.infer(request())
    with pytest.raises(ConnectionLost):
        client.infer(request())
    with pytest.raises(ServerUnreachable):
        client.infer(request())
    with running(service, port=server.port):
        assert client.infer(request())["actions"].shape == (8, 7)
        client.close()


def test_another_policy_after_a_new_connection_is_told(service):
    with running(service) as server:
        client = PolicyClient(HOST, server.port)
    with pytest.raises(ConnectionLost):
        client.infer(request())
    other = PolicyService(tiny_policy("diffusion"), max_batch=1)
    with running(other, port=server.port), pytest.raises(PolicyChanged, match="serves another policy"):
        client.infer(request())
    other.close()


@contextlib.contextmanager
def answering(handler):
    """A server of another kind, that does what the handler does after a handshake."""
    with serve(handler, HOST, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        thread.join()


def test_a_late_reply_is_never_taken_for_another_s():
    def late(connection):
        connection.send(pack({"checkpoint": {}}))
        with contextlib.suppress(ConnectionClosed):
            while True:
                number = unpack(connection.recv())["number"]
                time.sleep(1.0 if number == 0 else 0.0)
                connection.send(pack({"actions": number}))

    with answering(late) as port, PolicyClient(HOST, port, timeout_s=0.5) as client:
        with pytest.raises(NoReplyInTime, match=r"no reply within 0\.5 s"):
            client.infer({"number": 0})
        time.sleep(0.7)
        assert client.infer({"number": 1})["actions"] == 1


@pytest.mark.parametrize("first", [b"\xc1", pack([1]), "text", None], ids=str)
def test_what_is_no_policy_server_is_told(first):
    def other(connection):
        if first is not None:
            connection.send(first)

    with answering(other) as port, pytest.raises(ServerUnreachable, match="says nothing of a policy"):
        PolicyClient(HOST, port)


@pytest.mark.parametrize("reply", [b"\xc1", pack([1])])
def test_a_damaged_reply_is_told(reply):
    def damaged(connection):
        connection.send(pack({}))
        connection.recv()
        connection.send(reply)

    with (
        answering(damaged) as port,
        PolicyClient(HOST, port) as client,
        pytest.raises(ConnectionLost, match="reply"),
    ):
        client.infer({})


def test_the_client_needs_neither_jax_nor_the_policy():
    code = "import vla_jax.client, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert {"numpy", "websockets", "msgpack"} <= loaded
    assert not loaded & {"jax", "flax", "torch", "PIL", "vla_jax.policy", "vla_jax.contracts"}
