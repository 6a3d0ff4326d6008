"""A server in a thread of its own, and connections made by hand."""

import asyncio
import contextlib
import socket
import threading
import urllib.request
from dataclasses import dataclass

from tests.vla_jax.policy.policies import observations
from vla_jax.serving.access import bind
from vla_jax.serving.limits import Limits
from vla_jax.serving.server import PolicyServer
from vla_jax.serving.service import PolicyService

HOST = "127.0.0.1"
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


@dataclass(frozen=True)
class Running:
    port: int

    def health(self) -> tuple[int, str]:
        with urllib.request.urlopen(f"http://{HOST}:{self.port}/healthz", timeout=10) as reply:
            return reply.status, reply.read().decode()


@contextlib.contextmanager
def running(
    service: PolicyService,
    *,
    api_key: str | None = None,
    limits: Limits | None = None,
    port: int = 0,
    send_buffer: int | None = None,
):
    """Serves on a free port of the loopback while the block runs; a fault of the server fails the test."""
    server = PolicyServer(service, api_key=api_key, limits=limits or Limits())
    ready, stop, faults = threading.Event(), threading.Event(), []

    def serve() -> None:
        try:
            asyncio.run(server.run(bound, stop.is_set, ready.set))
        except BaseException as error:
            faults.append(error)
            ready.set()

    with bind(HOST, port, api_key) as bound:
        if send_buffer is not None:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        thread = threading.Thread(target=serve)
        thread.start()
        assert ready.wait(30)
        try:
            yield Running(bound.getsockname()[1])
        finally:
            stop.set()
            thread.join(30)
    assert not thread.is_alive()
    assert not faults, faults


def request(seed: int = 1) -> dict:
    """A request with features that fits `tiny_policy`."""
    observation = observations(1, seed)
    return {name: observation[name][0] for name in ("vl", "vl_mask", "sensor")}


def raw_connection(port: int) -> socket.socket:
    """Opens a websocket by hand; what the server sent with the handshake's answer has been read."""
    opened = socket.create_connection((HOST, port), timeout=10)
    opened.sendall(HANDSHAKE + b"\r\n")
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += opened.recv(65536)
    assert answer.startswith(b"HTTP/1.1 101")
    return opened


def frame(payload: bytes, opcode: int = 2) -> bytes:
    """Returns a client's frame, masked with zeros, which leaves the payload as it is."""
    length = len(payload)
    if length < 126:
        head = bytes([128 + length])
    elif length < 2**16:
        head = bytes([128 + 126]) + length.to_bytes(2, "big")
    else:
        head = bytes([128 + 127]) + length.to_bytes(8, "big")
    return bytes([128 + opcode]) + head + bytes(4) + payload
