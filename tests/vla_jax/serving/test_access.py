"""This machine without a key, others with one; a key that is worth its name."""

import socket

import pytest
from websockets.datastructures import Headers

from vla_jax.errors import UserError
from vla_jax.serving.access import bind, is_allowed, read_api_key

KEY = "correct-horse-battery"


@pytest.mark.parametrize("content", [KEY, f"{KEY}\n", f"  {KEY}\r\n"])
def test_a_key_is_the_file_s_only_line(content, tmp_path):
    (tmp_path / "key").write_text(content)
    assert read_api_key(tmp_path / "key") == KEY


NO_KEYS = {
    "empty": b"",
    "short": b"short",
    "blanks": b"two words of it, long",
    "long": b"a" * 600,
    "no text": b"\xff" * 20,
    "two lines": b"line-of-many-letters\nand-another-of-them",
}


@pytest.mark.parametrize("content", NO_KEYS.values(), ids=NO_KEYS)
def test_what_is_no_key_is_refused(content, tmp_path):
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(UserError, match="holds no key"):
        read_api_key(tmp_path / "key")


def test_a_key_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing: cannot be read \(No such file"):
        read_api_key(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory"):
        read_api_key(tmp_path)


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ([("Authorization", f"Api-Key {KEY}")], True),
        ([("authorization", f"Api-Key {KEY}")], True),
        ([], False),
        ([("Authorization", KEY)], False),
        ([("Authorization", f"Bearer {KEY}")], False),
        ([("Authorization", f"Api-Key {KEY}x")], False),
        ([("Authorization", "Api-Key café-au-lait-au-matin")], False),
        ([("Authorization", f"Api-Key {KEY}")] * 2, False),
    ],
    ids=str,
)
def test_only_the_key_opens(headers, allowed):
    assert is_allowed(Headers(headers), KEY) is allowed
    assert is_allowed(Headers(headers), None)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_this_machine_needs_no_key(host):
    with bind(host, 0, None) as bound:
        assert bound.getsockname()[1] > 0


def test_other_machines_need_one():
    with pytest.raises(UserError, match="can be reached from other machines; give --api-key-file"):
        bind("0.0.0.0", 0, None)
    bind("0.0.0.0", 0, KEY).close()


def test_addresses_that_are_taken_or_not_there_are_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen at 127.0.0.1:{port} \(Address already in use\)"):
            bind("127.0.0.1", port, None)
    with pytest.raises(UserError, match=r"--host no\.such\.host\.invalid: no such address"):
        bind("no.such.host.invalid", 0, None)
    with pytest.raises(UserError, match=r"cannot listen at 192\.0\.2\.1:0"):
        bind("192.0.2.1", 0, KEY)
