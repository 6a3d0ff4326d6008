"""Who may ask: anybody on this machine, others with a key."""

import hmac
import ipaddress
import re
import socket
from pathlib import Path

from websockets.datastructures import Headers

from vla_jax.errors import UserError

SCHEME = "Api-Key"
MIN_LENGTH, MAX_LENGTH = 16, 512
"""Characters of a key."""


def read_api_key(path: Path) -> str:
    """Returns the key that a file holds on its only line.

    Raises:
        UserError: the file cannot be read, or holds no key that is hard to guess.
    """
    advice = f"write one with: head -c 32 /dev/urandom | base64 > {path}"
    try:
        with path.open("rb") as file:
            content = file.read(2 * MAX_LENGTH)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {advice}") from error
    key = content.decode("ascii", "replace").strip()
    if not re.fullmatch(rf"[!-~]{{{MIN_LENGTH},{MAX_LENGTH}}}", key):
        raise UserError(
            f"{path}: holds no key: one line of {MIN_LENGTH} to {MAX_LENGTH} characters without blanks; {advice}"
        )
    return key


def is_allowed(headers: Headers, api_key: str | None) -> bool:
    """Whether a request has the key, compared in a time that tells nothing of it. api_key: None takes everybody."""
    if api_key is None:
        return True
    given = headers.get_all("Authorization")
    expected = f"{SCHEME} {api_key}".encode()
    return len(given) == 1 and hmac.compare_digest(given[0].encode("utf-8", "surrogateescape"), expected)


def bind(host: str, port: int, api_key: str | None) -> socket.socket:
    """Returns a socket at an address, on which nothing is listened yet. port: 0 takes one that is free.

    Raises:
        UserError: the address is not there or taken, or is reached from other machines and there is no key.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: no such address ({error})") from error
    # A name with addresses of both kinds, such as localhost, is listened at where most clients look.
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    # Looked at as resolved: a name that means another machine's interface must not pass for this machine.
    if api_key is None and not ipaddress.ip_address(address[0]).is_loopback:
        raise UserError(
            f"--host {host} can be reached from other machines; give --api-key-file, or --host 127.0.0.1"
        )
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UserError(cannot_listen(host, port, error)) from error
    return bound


def cannot_listen(host: str, port: int, error: OSError) -> str:
    """Says why an address cannot be listened at."""
    return f"cannot listen at {host}:{port} ({error.strerror}); give another --port, or stop what has it"
