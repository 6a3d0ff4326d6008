"""Streams as a robot would send them, made at once."""

import io

import numpy as np
from PIL import Image

from vla_jax.live.streams import Picture, SensorBatch, State

START = 1_790_000_000.0


def jpeg(brightness: int = 90) -> bytes:
    """Returns a small picture."""
    out = io.BytesIO()
    Image.new("RGB", (32, 24), (brightness, 80, 70)).save(out, "JPEG")
    return out.getvalue()


def state(k: int, *, offset: float = 0.0, epoch: int = 0) -> State:
    """Returns state k of a robot at 100 Hz whose clock differs from ours by `offset`, moving along x."""
    time = START + 0.01 * k
    pose = np.array([0.01 * k, 0, 50, 0, 0, 0.0])
    own = time - offset
    return State(time, time + 0.001, own, own + 0.0005, 0.0, np.zeros(6), pose, offset, epoch)


def sensor(first: int, count: int = 13, *, offset: float = 0.0, epoch: int = 0) -> SensorBatch:
    """Returns rows first … of a sensor at 650 Hz; the force of a row is its number."""
    times = START + np.arange(first, first + count) / 650
    rows = np.full((count, 1026), 7.0, np.float32)
    rows[:, 0] = np.arange(first, first + count)
    return SensorBatch(times, float(times[-1]) + 0.001, times - offset, rows, offset, epoch)


def picture(view: str, k: int) -> Picture:
    """Returns picture k of a camera at 5 Hz."""
    time = START - 0.01 + 0.2 * k
    return Picture(view, time, time + 0.002, jpeg(40 + k % 200))


def send_seconds(sink, seconds: float, *, start: float = 0.0, views=("View1", "View2")) -> None:
    """Sends so many seconds of all streams from a moment on, in order of time."""
    first, last = round(start * 10), round((start + seconds) * 10)
    for step in range(first, last):
        if step % 2 == 0:
            for view in views:
                sink.picture(picture(view, step // 2))
        for batch in range(5):
            sink.sensor(sensor(65 * step + 13 * batch))
        for k in range(10):
            sink.state(state(10 * step + k))
