"""The client of a policy server: `vla-jax serve`, or another that speaks openpi's protocol.

Needs NumPy, websockets and msgpack; nothing of the policy is imported here.

    with PolicyClient("127.0.0.1", 8000) as client:
        actions = client.infer({"vl": vl, "vl_mask": vl_mask, "sensor": sensor})["actions"]
"""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from vla_jax.serving.messages import MessageError, pack, unpack

MAX_REPLY_BYTES = 2**26
_RETRY_S = 0.2
# A call that had no reply in time takes no longer than this to close its connection.
_CLOSE_S = 0.2


class PolicyClientError(RuntimeError):
    """No actions came of a call; each reason is a class of its own."""


class ServerUnreachable(PolicyClientError):
    """Nobody answers at the address, or who does lets nobody in: wrong key, too many clients, no policy server."""


class ConnectionLost(PolicyClientError):
    """The connection ended before the reply was there. The next call connects anew."""


class NoReplyInTime(PolicyClientError):
    """The reply was not there in time; one that comes later is never taken for another's."""


class RequestRefused(PolicyClientError):
    """The request does not fit the policy; the text says all that does not. The connection goes on."""


class PolicyChanged(PolicyClientError):
    """After a new connection another policy answers, or the same one asks for something else."""


class PolicyClient:
    """One connection to a policy server, for one thread.

    Nothing is sent twice: a call whose connection is lost, or whose reply is late, raises, and what to do without
    its actions is for the caller to decide. The next call connects anew, and raises `PolicyChanged` where the
    server's metadata are then others.

    Attributes:
        metadata: what the server told of its policy and of requests (docs/serving.md).
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str | None = None,
        *,
        timeout_s: float = 10.0,
        connect_timeout_s: float = 10.0,
        wait_s: float = 0.0,
    ) -> None:
        """Connects, and reads the metadata.

        api_key: sent as `Authorization: Api-Key KEY`.
        timeout_s: for a reply. connect_timeout_s: for a connection with its metadata.
        wait_s: how long to go on trying while nobody listens, for a server that is being started.

        Raises:
            ServerUnreachable: there is no server, or it lets nobody in.
        """
        self._address = f"{f'[{host}]' if ':' in host else host}:{port}"
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        deadline = time.monotonic() + wait_s
        while True:
            try:
                connection, self.metadata = self._connect()
                self._connection: ClientConnection | None = connection
                return
            except ServerUnreachable as error:
                is_refused = isinstance(error.__cause__, ConnectionRefusedError)
                if not is_refused or time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_S)

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the reply to an observation: `actions` [h, a], `policy_timing` and `server_timing`.

        observation: names to NumPy arrays and other values, without batch axis; `metadata["requests"]` lists them.

        Raises:
            RequestRefused: it does not fit the policy, or holds something that cannot be sent.
            ConnectionLost, NoReplyInTime: there are no actions.
            ServerUnreachable, PolicyChanged: likewise, at a new connection.
        """
        try:
            message = pack(dict(observation))
        except MessageError as error:
            raise RequestRefused(str(error)) from error
        connection = self._connected()
        try:
            connection.send(message)
            reply = connection.recv(timeout=self._timeout_s)
        except TimeoutError as error:
            self.close()
            raise NoReplyInTime(f"{self._address}: no reply within {self._timeout_s:g} s") from error
        except (ConnectionClosed, OSError) as error:
            self.close()
            raise ConnectionLost(f"{self._address}: the connection is lost ({error})") from error
        if isinstance(reply, str):
            raise RequestRefused(reply)
        return self._read(reply)

    def close(self) -> None:
        """Ends the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> "PolicyClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connected(self) -> ClientConnection:
        if self._connection is None:
            connection, metadata = self._connect()
            if metadata != self.metadata:
                connection.close()
                raise PolicyChanged(
                    f"{self._address}: serves another policy than before ({_named(metadata)}, it was "
                    f"{_named(self.metadata)}); make a new client"
                )
            self._connection = connection
        return self._connection

    def _connect(self) -> tuple[ClientConnection, dict[str, Any]]:
        try:
            # Entered by hand: versions from 17.1 on want it, earlier ones do not mind.
            connection = connect(
                f"ws://{self._address}",
                additional_headers=self._headers,
                compression=None,
                max_size=MAX_REPLY_BYTES,
                open_timeout=self._connect_timeout_s,
                close_timeout=_CLOSE_S,
                proxy=None,  # A robot's server is never behind the proxy that the environment names.
            ).__enter__()
        except InvalidStatus as error:
            response = error.response
            said = (response.body or b"").decode("utf-8", "replace").strip()
            raise ServerUnreachable(f"{self._address}: HTTP {response.status_code} ({said})") from error
        except (OSError, WebSocketException) as error:
            raise ServerUnreachable(f"{self._address}: cannot connect ({error})") from error
        try:
            first = connection.recv(timeout=self._connect_timeout_s)
            metadata = unpack(first) if isinstance(first, bytes) else None
        except (TimeoutError, ConnectionClosed, MessageError) as error:
            connection.close()
            raise ServerUnreachable(f"{self._address}: says nothing of a policy ({error})") from error
        if not isinstance(metadata, dict):
            connection.close()
            raise ServerUnreachable(f"{self._address}: says nothing of a policy")
        return connection, metadata

    def _read(self, reply: bytes) -> dict[str, Any]:
        try:
            result = unpack(reply)
        except MessageError as error:
            self.close()
            raise ConnectionLost(f"{self._address}: sent a damaged reply ({error})") from error
        if not isinstance(result, dict):
            self.close()
            raise ConnectionLost(f"{self._address}: sent a reply that is no map")
        return result


def _named(metadata: Mapping[str, Any]) -> str:
    checkpoint = metadata.get("checkpoint")
    if not isinstance(checkpoint, dict):
        return "unknown"
    return f"{checkpoint.get('path')}, step {checkpoint.get('step')}"
