"""The server: openpi's protocol on a websocket, and `/healthz` by HTTP.

A connection begins with the metadata; then each message is a request and is answered before the next is read. A reply
in bytes is a result, one in text says what is wrong with the request, and the connection goes on. Nothing here
computes: the event loop is free while predictions run.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from vla_jax.errors import UserError
from vla_jax.serving.access import SCHEME, is_allowed
from vla_jax.serving.limits import Limits, message_bytes
from vla_jax.serving.messages import MessageError, pack, unpack
from vla_jax.serving.metadata import describe
from vla_jax.serving.requests import RequestError
from vla_jax.serving.service import PolicyService

logger = logging.getLogger(__name__)
# The library tells every damaged handshake with a traceback.
_silent = logging.getLogger(f"{__name__}.websockets")
_silent.propagate = False
_silent.addHandler(logging.NullHandler())

HEALTH_PATH = "/healthz"
BACKLOG = 256
POLL_S = 0.1


class PolicyServer:
    """Serves a policy until it is told to stop."""

    def __init__(self, service: PolicyService, *, api_key: str | None = None, limits: Limits) -> None:
        """api_key: what clients must send as `Authorization: Api-Key KEY`; None takes everybody."""
        self._service = service
        self._api_key = api_key
        self._limits = limits
        self._metadata = pack(describe(service, limits))
        self._num_clients = 0

    async def run(
        self, bound: socket.socket, is_stopped: Callable[[], bool], on_ready: Callable[[], None]
    ) -> None:
        """Listens on a bound socket until `is_stopped` says so; then closes all connections.

        Raises:
            OSError: it cannot be listened on.
        """
        limits = self._limits
        async with serve(
            self._handle,
            sock=bound,
            process_request=self._admit,
            # A page in a browser on this machine reaches the loopback too; no program sends an origin.
            origins=[None],
            compression=None,
            max_size=message_bytes(self._service.spec),
            max_queue=1,
            open_timeout=limits.open_s,
            ping_interval=limits.ping_s,
            ping_timeout=limits.ping_s,
            close_timeout=limits.close_s,
            logger=_silent,
            backlog=BACKLOG,
        ):
            on_ready()
            while not is_stopped():
                await asyncio.sleep(POLL_S)

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answers what is no client's request, or not an allowed one; None lets the client in."""
        if request.path == HEALTH_PATH:
            return connection.respond(HTTPStatus.OK, "OK\n")
        if not is_allowed(request.headers, self._api_key):
            refused = connection.respond(HTTPStatus.UNAUTHORIZED, "a key is needed, and this is none\n")
            refused.headers["WWW-Authenticate"] = SCHEME
            return refused
        if self._num_clients >= self._limits.max_clients:
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{self._num_clients} clients are here already; come later\n"
            )
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        """Serves one client until it leaves."""
        client = _address(connection)
        self._num_clients += 1
        num_requests = 0
        logger.info("%s: connected, %d clients", client, self._num_clients)
        try:
            await self._send(connection, self._metadata)
            previous_s: float | None = None
            while True:
                try:
                    async with asyncio.timeout(self._limits.idle_s):
                        message = await connection.recv()
                except TimeoutError:
                    await connection.close(CloseCode.POLICY_VIOLATION, "idle for too long")
                    break
                begun = time.perf_counter()
                reply = await self._reply(message, previous_s)
                await self._send(connection, reply)
                previous_s = time.perf_counter() - begun
                num_requests += 1
        except ConnectionClosed:
            pass
        except TimeoutError:
            # It does not read: there is no use in telling it more.
            connection.transport.abort()
        finally:
            self._num_clients -= 1
            logger.info("%s: gone after %d requests, %d clients", client, num_requests, self._num_clients)

    async def _reply(self, message: bytes | str, previous_s: float | None) -> bytes | str:
        """Returns a packed result, or the text of an error."""
        try:
            if isinstance(message, str):
                raise MessageError("a text; requests are msgpack in binary frames")
            result: dict[str, Any] = await self._service.answer(unpack(message))
        except (MessageError, RequestError, UserError) as error:
            return f"request refused: {' '.join(str(error).split())}"
        except Exception as error:
            logger.exception("a request failed")
            return f"the server failed at this request ({type(error).__name__}); its log says more"
        if previous_s is not None:
            result["server_timing"]["prev_total_ms"] = 1e3 * previous_s
        return pack(result)

    async def _send(self, connection: ServerConnection, frame: bytes | str) -> None:
        async with asyncio.timeout(self._limits.send_s):
            await connection.send(frame)


def _address(connection: ServerConnection) -> str:
    with contextlib.suppress(TypeError, IndexError):
        return f"{connection.remote_address[0]}:{connection.remote_address[1]}"
    return "a client"
