"""The lab's messages: to the byte, there and back, and nothing but WireError for whatever else comes."""

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_jax.live import wire
from vla_jax.live.wire import (
    EpisodeEnd,
    MoveBy,
    MoveTo,
    Picture,
    RobotState,
    SensorBatch,
    Start,
    Stop,
    WireError,
)

JPEG = b"\xff\xd8 picture \xff\xd9"
TIMES = st.floats(0.0, wire.LATEST_S)
SIX = st.lists(st.floats(-wire.MAX_POSE, wire.MAX_POSE, width=32), min_size=6, max_size=6)


def batch(count: int, seed: int = 0) -> SensorBatch:
    rng = np.random.default_rng(seed)
    times = 1.7e9 + np.arange(count) / 650
    return SensorBatch(times, times + 0.01, rng.normal(100, 50, (count, 1026)).astype(np.float32))


def same(a, b) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


@given(st.sampled_from(sorted(wire.CAMERAS)), TIMES, st.binary(max_size=99))
def test_a_picture_returns(view, time_s, inside):
    picture = Picture(view, time_s, b"\xff\xd8" + inside + b"\xff\xd9")
    assert wire.decode_picture(wire.encode_picture(picture)) == picture


@given(TIMES, TIMES, SIX, SIX)
def test_a_state_returns(origin_s, sent_s, joints, pose):
    state = RobotState(origin_s, sent_s, 0.0, np.array(joints), np.array(pose))
    assert same(wire.decode_robot(wire.encode_state(state)), state)


@given(st.integers(1, wire.MAX_SAMPLES), st.integers(0, 2**32 - 1))
def test_a_sensor_batch_returns(count, seed):
    assert same(wire.decode_sensor(wire.encode_sensor(batch(count, seed))), batch(count, seed))


@given(
    st.one_of(
        st.just(Stop()),
        SIX.map(lambda six: MoveBy(tuple(six))),
        SIX.map(lambda six: MoveTo(tuple(six))),
        st.tuples(SIX, st.booleans()).map(lambda x: Start(joints=tuple(x[0]), lock_j6=x[1])),
        st.tuples(SIX, st.booleans()).map(lambda x: Start(pose=tuple(x[0]), lock_j6=x[1])),
    )
)
def test_a_command_returns(command):
    assert wire.decode_command(wire.encode_command(command)) == command


def test_messages_are_the_labs_to_the_byte():
    state = RobotState(1.5, 2.5, 0.25, np.arange(6.0), np.arange(6.0) + 10)
    assert wire.encode_state(state) == [
        b"robot_state",
        struct.pack("<ddf12f", 1.5, 2.5, 0.25, *range(6), *range(10, 16)),
    ]
    assert wire.encode_end() == [b"episode_end", b"finished"]
    assert wire.decode_robot(wire.encode_end()) == EpisodeEnd()
    two = batch(2)
    assert wire.encode_sensor(two) == struct.pack("<I", 2) + b"".join(
        struct.pack("<ddf", two.times_s[i], two.sent_s[i], two.rows[i, 0])
        + struct.pack("<1025f", *two.rows[i, 1:])
        for i in range(2)
    )
    assert len(wire.encode_sensor(batch(15))) == wire.MAX_DATAGRAM_BYTES < 65_507
    header, jpeg = wire.encode_picture(Picture("View2", 3.5, JPEG))
    assert json.loads(header) == {"camera": "ZED_49429257_left", "timestamp": 3.5, "size": len(JPEG)}
    assert jpeg == JPEG
    assert json.loads(wire.encode_command(MoveBy((1.0, 0, 0, 0, 0, 2)))) == {
        "cmd": "dpose",
        "dp": [1, 0, 0, 0, 0, 2],
    }
    assert json.loads(wire.encode_command(Start(joints=(0,) * 6, lock_j6=True))) == {
        "cmd": "start",
        "start_joints": [0] * 6,
        "lock_j6": True,
    }
    assert json.loads(wire.encode_command(Stop())) == {"cmd": "stop"}


def test_any_oak_camera_is_the_fifth_view():
    assert wire.view_of("my OAK-D 7") == "View5"


def _changed(header: dict, **fields) -> list[bytes]:
    return [json.dumps({**header, **fields}).encode(), JPEG]


HEADER = {"camera": "ZED_41182735_left", "timestamp": 5.0, "size": len(JPEG)}


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([JPEG], "2 parts, not 1"),
        (_changed(HEADER, size=3), "size is 3, but"),
        (_changed(HEADER, size=True), "size is True"),
        (_changed(HEADER, timestamp=float("nan")), "timestamp is nan"),
        (_changed(HEADER, timestamp=1.7e12), "timestamp is 1700000000000"),
        (_changed(HEADER, timestamp=10**400), "timestamp is 1000"),
        (_changed(HEADER, camera="ZED_1_left"), "no view has the camera 'ZED_1_left'"),
        (_changed(HEADER, camera=["OAK"]), "no view has the camera a list"),
        (_changed(HEADER, camera="OAK" * 99), "no view has the camera"),
        ([b"[" * 4000, JPEG], "not valid JSON"),
        ([b"[1]", JPEG], "holds list"),
        ([b" " * 5000, JPEG], "5000 bytes of JSON are too many"),
        ([b"\xff\xfe\xfd", JPEG], "not valid JSON"),
        ([json.dumps({**HEADER, "size": 4}).encode(), b"\xff\xd8ab"], "no whole JPEG"),
        ([json.dumps({**HEADER, "size": 3}).encode(), b"\xff\xd8\xd9"], "no whole JPEG"),
    ],
)
def test_damaged_pictures_are_refused(parts, says):
    with pytest.raises(WireError, match=says):
        wire.decode_picture(parts)


def _state(**fields) -> list[bytes]:
    good = {"origin_s": 1.0, "sent_s": 1.0, "force": 0.0, "joints": np.zeros(6), "pose": np.zeros(6)}
    return wire.encode_state(RobotState(**{**good, **fields}))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([b"robot_state"], "2 parts, not 1"),
        ([b"other" * 99, b""], "topic"),
        ([b"episode_end", b"soon"], "not finished"),
        ([b"robot_state", b"0" * 67], "67 bytes, expected 68"),
        (_state(origin_s=np.nan), "origin time is nan"),
        (_state(sent_s=-1.0), "send time is -1"),
        (_state(force=np.inf), "force is inf"),
        (_state(joints=np.full(6, 2e4)), "a joint is 20000"),
        (_state(pose=np.array([0, 0, np.nan, 0, 0, 0])), "the pose is nan"),
    ],
)
def test_damaged_states_are_refused(parts, says):
    with pytest.raises(WireError, match=says):
        wire.decode_robot(parts)


def _damaged(name: str, value: float) -> bytes:
    good = batch(3)
    getattr(good, name)[1] = value
    return wire.encode_sensor(good)


@pytest.mark.parametrize(
    ("datagram", "says"),
    [
        (b"", "0 bytes"),
        (b"123", "3 bytes"),
        (struct.pack("<I", 0), "0 samples"),
        (struct.pack("<I", 2**32 - 1) + b"0" * 4120, "4294967295 samples"),
        (struct.pack("<I", 2) + b"0" * 4120, "2 samples have 8244 bytes, but 4124 came"),
        (b"0" * 70_000, "70000 bytes"),
        (_damaged("times_s", np.nan), "time is nan"),
        (_damaged("times_s", 5.0), "descend"),
        (_damaged("sent_s", 1e11), "send time is 1e\\+11"),
        (_damaged("rows", np.inf), "a value is inf"),
    ],
)
def test_damaged_datagrams_are_refused(datagram, says):
    with pytest.raises(WireError, match=says):
        wire.decode_sensor(datagram)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "not valid JSON"),
        (b"null", "holds NoneType"),
        (b'{"cmd": "go"}', "cmd is 'go'"),
        (b'{"cmd": ["stop"]}', "cmd is a list"),
        (b'{"cmd": "dpose"}', "dp is None"),
        (b'{"cmd": "dpose", "dp": [0, 0, 0, 0, 0]}', "dp is a list, expected six"),
        (b'{"cmd": "dpose", "dp": [NaN, 0, 0, 0, 0, 0]}', "dp is nan"),
        (b'{"cmd": "dpose", "dp": [1e999, 0, 0, 0, 0, 0]}', "dp is inf"),
        (b'{"cmd": "dpose", "dp": [true, 0, 0, 0, 0, 0]}', "dp is True"),
        (b'{"cmd": "apose", "pose": ["1", 0, 0, 0, 0, 0]}', "pose is '1'"),
        (b'{"cmd": "start"}', "one of them"),
        (b'{"cmd": "start", "start_pose": [0,0,0,0,0,0], "lock_j6": 1}', "lock_j6 is 1"),
    ],
)
def test_damaged_commands_are_refused(message, says):
    with pytest.raises(WireError, match=says):
        wire.decode_command(message)


def decode_or_refuse(decode, message) -> None:
    with contextlib.suppress(WireError):
        decode(message)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_by_wire_errors_alone(data):
    calls = (
        (wire.decode_sensor, data),
        (wire.decode_sensor, struct.pack("<I", 1) + (data * 4120)[:4120]),
        (wire.decode_command, data),
        (wire.decode_picture, [data, JPEG]),
        (wire.decode_picture, [data]),
        (wire.decode_robot, [data, data]),
        (wire.decode_robot, [b"robot_state", (data * 68)[:68]]),
    )
    for decode, message in calls:
        decode_or_refuse(decode, message)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(), inner),
        max_leaves=12,
    ),
    st.sampled_from(["cmd", "dp", "pose", "camera", "timestamp", "size", "start_joints"]),
    st.sampled_from(["start", "dpose", "apose", "stop"]),
)
def test_any_json_is_refused_by_wire_errors_alone(value, name, command):
    for fields in (value, {"cmd": command, name: value}, {**HEADER, name: value}):
        text = json.dumps(fields).encode()
        for decode, message in ((wire.decode_command, text), (wire.decode_picture, [text, JPEG])):
            decode_or_refuse(decode, message)
