"""Messages are openpi-client's, byte for byte; nothing else is read, and nothing in them costs more than its length."""

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_jax.serving.messages import DTYPES, MAX_ELEMENTS, MessageError, pack, unpack

# As openpi_client.msgpack_numpy.packb wrote {"a": np.arange(3, dtype=np.int16), "s": np.float32(0.5), "t": "go"}.
STOCK = bytes.fromhex(
    "83a16184c40b5f5f6e6461727261795f5fc3c40464617461c406000001000200c4056474797065a33c6932c40573686170659103"
    "a17383c40d5f5f6e7067656e657269635f5fc3c40464617461cb3fe0000000000000c4056474797065a33c6634a174a2676f"
)


def test_the_bytes_are_the_stock_client_s():
    value = {"a": np.arange(3, dtype=np.int16), "s": np.float32(0.5), "t": "go"}
    assert pack(value) == STOCK
    read = unpack(STOCK)
    np.testing.assert_array_equal(read["a"], value["a"])
    assert (read["a"].dtype, read["s"], read["t"]) == (np.int16, np.float32(0.5), "go")


arrays = hnp.arrays(
    st.sampled_from(sorted(DTYPES.values(), key=str)), hnp.array_shapes(min_dims=0, min_side=0)
)
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
values = st.recursive(
    plain | st.text(max_size=9) | st.binary(max_size=9) | arrays,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150)
@given(values)
def test_what_is_packed_is_unpacked(value):
    assert same(unpack(pack(value)), value)


def same(read, value):
    if isinstance(value, np.ndarray):
        fits = read.dtype == value.dtype and read.shape == value.shape
        return fits and read.tobytes() == value.tobytes()
    if isinstance(value, dict):
        return list(read) == list(value) and all(same(read[name], value[name]) for name in value)
    if isinstance(value, list):
        return len(read) == len(value) and all(map(same, read, value))
    return read == value


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array(["text"]),
        np.array([1j]),
        np.zeros(2, [("a", "f4")]),
        np.datetime64("2026-01-01"),
        object,
        {"deep": {1, 2}},
        2**70,
    ],
    ids=["objects", "texts", "complex", "records", "time", "type", "set", "too large"],
)
def test_what_is_no_number_is_not_sent(value):
    with pytest.raises(MessageError, match="cannot be sent"):
        pack({"x": value})


def array(**changes):
    entries = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2]} | changes
    return msgpack.packb({"x": {name.encode(): value for name, value in entries.items() if value != "gone"}})


def scalar(dtype, data):
    return msgpack.packb({"x": {b"__npgeneric__": True, b"data": data, b"dtype": dtype}})


DAMAGED = {
    "object": (array(dtype="|O"), r"type '\|O'"),
    "void": (array(dtype="|V4"), "type"),
    "text": (array(dtype="<U1"), "type"),
    "structured": (array(dtype="f4,f4"), "type"),
    "sub-array": (array(dtype="(1000000000,)f4"), "type"),
    "type of a number": (array(dtype=4), "type 4"),
    "no type": (array(dtype="gone"), "type None"),
    "too short": (array(shape=[3]), "in 8 bytes"),
    "negative": (array(shape=[-2]), "shape"),
    "two negatives": (array(shape=[-1, -2]), "shape"),
    "truth value": (array(shape=[True, 2]), "shape"),
    "overflowing": (array(shape=[2**63, 2, 2**63]), "in 8 bytes"),
    "endless and empty": (array(data=b"", shape=[0, 2**63]), "no msgpack message"),
    "no shape": (array(shape="gone"), "shape None"),
    "many dimensions": (array(shape=[1] * 40 + [2]), "shape"),
    "data in a text": (array(data="12345678"), "in str"),
    "no data": (array(data="gone"), "in NoneType"),
    "scalar of text": (scalar("<f4", "12"), "number of type float32 in str"),
    "scalar too large": (scalar("|u1", 300), "300 is no number"),
    "scalar of bytes": (scalar("<f8", b"1"), "in bytes"),
    "object scalar": (scalar("|O", 1), "type"),
    "empty": (b"", "no msgpack message"),
    "two messages": (b"\xc0\xc0", "no msgpack message"),
    "cut": (STOCK[:-1], "no msgpack message"),
    "no UTF-8": (b"\x81\xa1a\xa1\xff", "no msgpack message"),
    "keys of numbers": (b"\x81\x01\x02", "no msgpack message"),
    "time stamp": (b"\xd6\xff\x00\x00\x00\x00", "no msgpack message|extension"),
    "extension": (b"\xd4\x05\x00", "no msgpack message|extension"),
    "longer list than bytes": (b"\xdd\xff\xff\xff\xff", "no msgpack message"),
    "nested without end": (b"\x91" * 100_000, "no msgpack message"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_message_is_refused(name):
    message, told = DAMAGED[name]
    with pytest.raises(MessageError, match=told) as caught:
        unpack(message)
    assert len(str(caught.value)) < 200


def test_lists_cost_no_more_than_is_allowed():
    """A list of empty lists is sixty times larger in memory than on the wire."""
    inner = [[] for _ in range(1000)]
    assert unpack(msgpack.packb(inner)) == inner
    with pytest.raises(MessageError, match=f"more than {MAX_ELEMENTS}"):
        unpack(msgpack.packb([inner] * 1000))


def test_five_hundred_damaged_messages_raise_one_kind_of_error():
    rng = np.random.default_rng(5)
    sound = pack(
        {"vl": np.zeros((3, 4), np.float32), "deep": [{"a": 1}] * 5, "prompt": "go", "n": np.int8(3)}
    )
    outcomes = set()
    for _ in range(500):
        changed = bytearray(sound)
        for place in rng.integers(0, len(changed), rng.integers(1, 6)):
            changed[place] = rng.integers(256)
        if rng.random() < 0.3:
            del changed[rng.integers(1, len(changed)) :]
        try:
            unpack(bytes(changed))
            outcomes.add("read")
        except MessageError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
