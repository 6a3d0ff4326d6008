"""What the lab's programs send each other, to the byte: cameras, robot state, sensor, commands.

All numbers are little-endian. Whoever sends is not trusted: sizes are compared before anything is made of the bytes,
numbers are finite and plausible, and whatever does not fit raises WireError and nothing else. The formats have no
checksum: a changed bit in the middle of a number or a picture is seen only where it makes the number absurd.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float32, Float64

from vla_jax.contracts.checks import shown

CAMERA_PORT, ROBOT_PORT, SENSOR_PORT, COMMAND_PORT = 5555, 5556, 9999, 5000
"""ZeroMQ PUSH to our PULL; ZeroMQ PUB that we subscribe to; UDP to us; ZeroMQ PUSH to the robot's PULL."""

OAK = "OAK"
CAMERAS = {
    "View1": "ZED_41182735_left",
    "View2": "ZED_49429257_left",
    "View3": "ZED_44377151_left",
    "View4": "ZED_49045152_left",
    "View5": OAK,
}
"""View → name of its camera. View5's may be any name with OAK in it."""

STATE_TOPIC, END_TOPIC, END_BODY = b"robot_state", b"episode_end", b"finished"

MAX_SAMPLES = 15
"""Of the sensor, in one datagram."""
NUM_CHANNELS = 1026
"""The force, then 1025 bins of the A-scan."""
MAX_DATAGRAM_BYTES = 4 + MAX_SAMPLES * 4120
MAX_JSON_BYTES = 4096
MAX_JPEG_BYTES = 16 << 20
MAX_NAME = 64
LATEST_S = 1e10
"""Unix time of the year 2286; whoever tells times in milliseconds is past it."""
MAX_POSE = 1e4
"""mm, or degrees: ten metres, some thirty turns."""
MAX_VALUE = 65_504.0
"""Of the sensor, in whatever units it has: the largest that a data set stores (float16)."""

_STATE = np.dtype(
    [("origin", "<f8"), ("sent", "<f8"), ("force", "<f4"), ("joints", "<f4", 6), ("pose", "<f4", 6)]
)
# The force and the A-scan lie side by side: together they are a sensor row.
_SAMPLE = np.dtype([("time", "<f8"), ("sent", "<f8"), ("row", "<f4", NUM_CHANNELS)])
_COUNT = np.dtype("<u4")
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


class WireError(ValueError):
    """A message that does not fit its format; the text says what is wrong with it."""


@dataclass(frozen=True)
class Picture:
    """A camera's message. time_s: unix time by the camera computer's clock. jpeg: as sent, not yet decoded."""

    view: str
    time_s: float
    jpeg: bytes


@dataclass(frozen=True)
class RobotState:
    """A robot's message. Times are unix times by the robot computer's clock: when the state was, when it was sent.

    force is a placeholder of the lab's program. joints: (6,) degrees. pose: (6,) x y z in mm, a b r in degrees.
    """

    origin_s: float
    sent_s: float
    force: float
    joints: Float64[np.ndarray, " 6"]
    pose: Float64[np.ndarray, " 6"]


@dataclass(frozen=True)
class EpisodeEnd:
    """The robot's program says that the episode has ended."""


@dataclass(frozen=True)
class SensorBatch:
    """A sensor datagram. Unix times by the sensor computer's clock, which is not ours; taken times never descend.

    times_s (n,): when each row was taken. sent_s (n,): when it was sent. rows (n, 1026): force, then A-scan.
    """

    times_s: Float64[np.ndarray, " n"]
    sent_s: Float64[np.ndarray, " n"]
    rows: Float32[np.ndarray, "n 1026"]


@dataclass(frozen=True)
class Start:
    """Go to where episodes start: six joints in degrees, or a pose in mm and degrees; one of the two."""

    joints: tuple[float, ...] | None = None
    pose: tuple[float, ...] | None = None
    lock_j6: bool = False


@dataclass(frozen=True)
class MoveBy:
    """Move by dx dy dz in mm and da db dr in degrees during the next 0.1 s."""

    delta: tuple[float, ...]


@dataclass(frozen=True)
class MoveTo:
    """Go to a pose: x y z in mm, a b r in degrees."""

    pose: tuple[float, ...]


@dataclass(frozen=True)
class Stop:
    """Stop where the arm is."""


Command = Start | MoveBy | MoveTo | Stop


def encode_picture(picture: Picture) -> list[bytes]:
    """Returns the two parts of a camera's message."""
    header = {"camera": CAMERAS[picture.view], "timestamp": picture.time_s, "size": len(picture.jpeg)}
    return [json.dumps(header).encode(), picture.jpeg]


def decode_picture(parts: Sequence[bytes]) -> Picture:
    """Reads a camera's message. The picture is bounded in size and has a JPEG's ends; decode it with care.

    Raises:
        WireError: it does not fit the format, or no view has this camera.
    """
    if len(parts) != 2:
        _refuse(f"a picture has 2 parts, not {len(parts)}")
    header, jpeg = _json_object(parts[0], "picture"), parts[1]
    time_s = _number(header, "timestamp", 0.0, LATEST_S)
    size = header.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or size != len(jpeg):
        _refuse(f"picture: size is {shown(size)}, but {len(jpeg)} bytes came")
    if len(jpeg) > MAX_JPEG_BYTES:
        _refuse(f"picture: {len(jpeg)} bytes are too many; at most {MAX_JPEG_BYTES} are read")
    if jpeg[:2] != _JPEG_START or jpeg[-2:] != _JPEG_END or len(jpeg) < 4:
        _refuse("picture: is no whole JPEG")
    return Picture(view_of(header.get("camera")), time_s, bytes(jpeg))


def view_of(camera: object) -> str:
    """Returns the view of a camera's name. Raises WireError for a camera that nobody knows."""
    if not isinstance(camera, str) or len(camera) > MAX_NAME:
        raise WireError(f"picture: no view has the camera {shown(camera)}")
    if OAK in camera:
        return "View5"
    for view, name in CAMERAS.items():
        if name == camera:
            return view
    raise WireError(f"picture: no view has the camera {shown(camera)}")


def encode_state(state: RobotState) -> list[bytes]:
    """Returns the two parts of a robot's message."""
    packed = np.array((state.origin_s, state.sent_s, state.force, state.joints, state.pose), _STATE)
    return [STATE_TOPIC, packed.tobytes()]


def encode_end() -> list[bytes]:
    """Returns the two parts of the message that ends an episode."""
    return [END_TOPIC, END_BODY]


def decode_robot(parts: Sequence[bytes]) -> RobotState | EpisodeEnd:
    """Reads a message of the robot's program.

    Raises:
        WireError: it does not fit the format.
    """
    if len(parts) != 2:
        _refuse(f"a robot's message has 2 parts, not {len(parts)}")
    topic, body = parts
    if topic == END_TOPIC:
        if body != END_BODY:
            _refuse(f"episode_end: its body has {len(body)} bytes and is not finished")
        return EpisodeEnd()
    if topic != STATE_TOPIC:
        _refuse(f"a robot's message has the topic {shown(bytes(topic[:MAX_NAME]))}")
    if len(body) != _STATE.itemsize:
        _refuse(f"robot state: has {len(body)} bytes, expected {_STATE.itemsize}")
    packed = np.frombuffer(body, _STATE)[0]
    _check_within(packed["origin"], 0.0, LATEST_S, "robot state: origin time")
    _check_within(packed["sent"], 0.0, LATEST_S, "robot state: send time")
    _check_within(packed["force"], -MAX_VALUE, MAX_VALUE, "robot state: force")
    _check_within(packed["joints"], -MAX_POSE, MAX_POSE, "robot state: a joint")
    _check_within(packed["pose"], -MAX_POSE, MAX_POSE, "robot state: the pose")
    return RobotState(
        float(packed["origin"]),
        float(packed["sent"]),
        float(packed["force"]),
        packed["joints"].astype(np.float64),
        packed["pose"].astype(np.float64),
    )


def encode_sensor(batch: SensorBatch) -> bytes:
    """Returns the datagram of 1 to `MAX_SAMPLES` samples."""
    count = len(batch.times_s)
    if not 1 <= count <= MAX_SAMPLES:
        raise ValueError(f"a datagram has 1 to {MAX_SAMPLES} samples, not {count}")
    samples = np.empty(count, _SAMPLE)
    samples["time"], samples["sent"], samples["row"] = batch.times_s, batch.sent_s, batch.rows
    return np.array(count, _COUNT).tobytes() + samples.tobytes()


def decode_sensor(datagram: bytes | memoryview) -> SensorBatch:
    """Reads a sensor datagram; the arrays are copies, so that its buffer may be used again.

    Raises:
        WireError: it does not fit the format.
    """
    if not _COUNT.itemsize <= len(datagram) <= MAX_DATAGRAM_BYTES:
        _refuse(f"sensor: a datagram has {len(datagram)} bytes, expected 4 to {MAX_DATAGRAM_BYTES}")
    count = int(np.frombuffer(datagram, _COUNT, 1)[0])
    if not 1 <= count <= MAX_SAMPLES:
        _refuse(f"sensor: a datagram has {count} samples, expected 1 to {MAX_SAMPLES}")
    expected = _COUNT.itemsize + count * _SAMPLE.itemsize
    if len(datagram) != expected:
        _refuse(f"sensor: {count} samples have {expected} bytes, but {len(datagram)} came")
    samples = np.frombuffer(datagram, _SAMPLE, count, _COUNT.itemsize)
    batch = SensorBatch(samples["time"].copy(), samples["sent"].copy(), samples["row"].copy())
    _check_within(batch.times_s, 0.0, LATEST_S, "sensor: time")
    _check_within(batch.sent_s, 0.0, LATEST_S, "sensor: send time")
    _check_within(batch.rows, -MAX_VALUE, MAX_VALUE, "sensor: a value")
    if (np.diff(batch.times_s) < 0).any():
        _refuse("sensor: the times of a datagram descend")
    return batch


def encode_command(command: Command) -> bytes:
    """Returns the JSON of a command to the robot's program."""
    match command:
        case Start(joints, pose, lock_j6):
            where = {"start_joints": joints} if joints is not None else {"start_pose": pose}
            fields = {"cmd": "start", **where, **({"lock_j6": True} if lock_j6 else {})}
        case MoveBy(delta):
            fields = {"cmd": "dpose", "dp": delta}
        case MoveTo(pose):
            fields = {"cmd": "apose", "pose": pose}
        case Stop():
            fields = {"cmd": "stop"}
    return json.dumps(fields, allow_nan=False).encode()


def decode_command(message: bytes) -> Command:
    """Reads a command to the robot's program.

    Raises:
        WireError: it does not fit the format.
    """
    fields = _json_object(message, "command")
    name = fields.get("cmd")
    if name == "stop":
        return Stop()
    if name == "dpose":
        return MoveBy(_six(fields, "dp"))
    if name == "apose":
        return MoveTo(_six(fields, "pose"))
    if name != "start":
        _refuse(f"command: cmd is {shown(name)}; expected start, dpose, apose or stop")
    lock_j6 = fields.get("lock_j6", False)
    if not isinstance(lock_j6, bool):
        _refuse(f"command: lock_j6 is {shown(lock_j6)}, expected true or false")
    if ("start_joints" in fields) == ("start_pose" in fields):
        _refuse("command: start wants start_joints or start_pose, one of them")
    if "start_joints" in fields:
        return Start(joints=_six(fields, "start_joints"), lock_j6=lock_j6)
    return Start(pose=_six(fields, "start_pose"), lock_j6=lock_j6)


def _json_object(text: bytes, what: str) -> dict[str, Any]:
    if len(text) > MAX_JSON_BYTES:
        _refuse(f"{what}: {len(text)} bytes of JSON are too many; at most {MAX_JSON_BYTES} are read")
    try:
        fields = json.loads(bytes(text))
    except (ValueError, RecursionError) as error:
        raise WireError(f"{what}: not valid JSON ({str(error)[:80]})") from None
    if not isinstance(fields, dict):
        _refuse(f"{what}: holds {type(fields).__name__}, not an object")
    return fields


def _number(fields: dict[str, Any], name: str, low: float, high: float) -> float:
    value = fields.get(name)
    return _checked(value, low, high, name)


def _six(fields: dict[str, Any], name: str) -> tuple[float, ...]:
    values = fields.get(name)
    if not isinstance(values, list) or len(values) != 6:
        _refuse(f"command: {name} is {shown(values)}, expected six numbers")
    return tuple(_checked(value, -MAX_POSE, MAX_POSE, name) for value in values)


def _checked(value: object, low: float, high: float, name: str) -> float:
    """Returns a number of a JSON text; NaN and numbers too large for a float lie in no range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        _refuse(f"{name} is {shown(value)}, expected a number from {low:g} to {high:g}")
    return float(value)


def _check_within(values: np.ndarray, low: float, high: float, what: str) -> None:
    """Refuses NaN too, which is in no range."""
    if not ((values >= low) & (values <= high)).all():
        wrong = np.atleast_1d(values)[~np.atleast_1d((values >= low) & (values <= high))][0]
        _refuse(f"{what} is {wrong:g}, expected {low:g} to {high:g}")


def _refuse(text: str) -> NoReturn:
    raise WireError(text)
