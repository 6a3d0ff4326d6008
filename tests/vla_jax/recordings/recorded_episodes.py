"""Writes small recorded episodes for the tests."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

POSE_HEADER = "recv_timestamp,origin_timestamp,send_timestamp,pose_x,pose_y,pose_z,pose_a,pose_b,pose_r"
START = 1_700_000_000.0


def poses_csv(times: np.ndarray, poses: np.ndarray) -> str:
    rows = (
        ",".join([f"{t:.6f}"] * 3 + [f"{value:.6f}" for value in pose])
        for t, pose in zip(times, poses, strict=True)
    )
    return "\n".join([POSE_HEADER, *rows]) + "\n"


def jpeg(seed: int, size: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def sensor_rows(num_rows: int, seed: int = 0) -> np.ndarray:
    """Rows that tell their own number: channel 0 is row / 64, exact in float16 for small numbers."""
    rows = np.random.default_rng(seed).normal(50, 20, (num_rows, 1026)).astype(np.float16)
    rows[:, 0] = np.arange(num_rows) / 64
    return rows


def write_windows_episode(
    folder: Path,
    *,
    seed: int = 0,
    seconds: float = 2.0,
    robot_hz: float = 100.0,
    image_hz: float = 5.0,
    views: tuple[str, ...] = ("View1", "View2"),
    window_rows: int = 65,
    stride_rows: int = 65,
    sensor_dtype: type = np.float16,
    has_sensor: bool = True,
    instruction: str | None = "insert",
    metadata: dict | None = None,
) -> Path:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    num_poses = round(seconds * robot_hz) + 1
    times = START + np.arange(num_poses) / robot_hz
    poses = np.cumsum(generator.normal(0, 0.02, (num_poses, 6)), axis=0)
    (folder / "robot_states.csv").write_text(poses_csv(times, poses))
    for i, view in enumerate(views):
        (folder / "images" / view).mkdir(parents=True)
        # Cameras start a little after the poses and each at its own moment.
        for k in range(int(seconds * image_hz)):
            name = f"{START + 0.01 * i + k / image_hz:.6f}.jpg"
            (folder / "images" / view / name).write_bytes(jpeg(1000 * seed + 100 * i + k))
    if has_sensor:
        stream = sensor_rows(round(seconds * 650), seed)
        starts = np.arange(0, len(stream) - window_rows + 1, stride_rows)
        np.savez(
            folder / "sensor_data.npz",
            data=np.stack([stream[s : s + window_rows] for s in starts]).astype(sensor_dtype),
            timestamps=START + (starts + window_rows) / 650,
        )
    content = {
        "camera_views": list(views),
        "robot_hz": robot_hz,
        "sensor_hz": 650,
        "robot_states_count": num_poses,
    }
    if instruction is not None:
        content["instruction"] = instruction
    (folder / "metadata.json").write_text(json.dumps(content | (metadata or {})))
    return folder


def write_data_set(root: Path, num_episodes: int = 5, **options) -> Path:
    for i in range(num_episodes):
        write_windows_episode(root / f"Task_{i % 2}" / f"episode_{i:03d}", seed=i, **options)
    return root
