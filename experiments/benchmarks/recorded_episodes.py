"""Episodes of the lab's sizes with made-up content, for benchmarks: quick to write, slow to read as real ones are."""

import io
import json
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SENSOR_HZ, ROBOT_HZ, IMAGE_HZ = 650, 100, 5
NUM_CHANNELS = 1026
SENSOR_FILE = "sensor_data.npz"
START = 1_700_000_000.0
POSE_HEADER = "recv_timestamp,origin_timestamp,send_timestamp,pose_x,pose_y,pose_z,pose_a,pose_b,pose_r"
# A few pictures, used again and again: a decoder does not know, and making them takes long.
NUM_PICTURES = 8


@dataclass(frozen=True)
class EpisodeShape:
    """What an episode holds. image_size: (width, height); compressed: whether the sensor windows are deflated.

    window_rows: of each sensor window, 0 for an episode without sensor.
    """

    seconds: float = 18.0
    views: int = 5
    image_size: tuple[int, int] = (640, 360)
    window_rows: int = 650
    windows_hz: float = 5.6
    compressed: bool = False


def write_episodes(root: Path, number: int, shape: EpisodeShape, seed: int = 0) -> list[Path]:
    """Writes `windows` episodes below root/Benchmark_point and returns their folders.

    All have copies of one sensor file, which takes long to make; no picture is equal to another.
    """
    pictures = [_picture(shape.image_size, seed + i) for i in range(NUM_PICTURES)]
    folders = [root / "Benchmark_point" / f"episode_{index:04d}" for index in range(number)]
    for index, folder in enumerate(folders):
        folder.mkdir(parents=True)
        if not shape.window_rows:
            pass
        elif index == 0:
            _write_sensor(folder / SENSOR_FILE, shape, np.random.default_rng(seed))
        else:
            shutil.copyfile(folders[0] / SENSOR_FILE, folder / SENSOR_FILE)
        _write_rest(folder, index, shape, pictures, np.random.default_rng([seed, index]))
    return folders


def sensor_stream(num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Returns rows (n, 1026) f32 of the values' usual size, each unlike the others; exact in float16."""
    depth = 50 + 40 * np.exp(-np.arange(NUM_CHANNELS) / 300)
    rows = depth + rng.standard_normal((num_rows, NUM_CHANNELS), np.float32) * 12
    # What an analogue-digital converter gives: steps, not every number there is.
    return (np.round(rows * 8) / 8).astype(np.float32)


def window_ends(shape: EpisodeShape) -> np.ndarray:
    """Returns one past the last row of each recorded window (n,) int."""
    if not shape.window_rows:
        return np.empty(0, np.int64)
    num_rows = round(shape.seconds * SENSOR_HZ)
    return np.arange(shape.window_rows, num_rows + 1, round(SENSOR_HZ / shape.windows_hz))


def _write_sensor(path: Path, shape: EpisodeShape, rng: np.random.Generator) -> None:
    stream, ends = sensor_stream(round(shape.seconds * SENSOR_HZ), rng), window_ends(shape)
    windows = stream[ends[:, None] - shape.window_rows + np.arange(shape.window_rows)]
    method, level = (zipfile.ZIP_DEFLATED, 1) if shape.compressed else (zipfile.ZIP_STORED, None)
    with zipfile.ZipFile(path, "w", method, compresslevel=level) as archive:
        for name, array in (("data", windows), ("timestamps", START + ends / SENSOR_HZ)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _write_rest(
    folder: Path, index: int, shape: EpisodeShape, pictures: list[bytes], rng: np.random.Generator
) -> None:
    num_poses = round(shape.seconds * ROBOT_HZ) + 1
    times = START + np.arange(num_poses) / ROBOT_HZ
    poses = np.cumsum(rng.normal(0, 0.02, (num_poses, 6)), axis=0)
    table = np.column_stack([times, times, times, poses])
    np.savetxt(folder / "robot_states.csv", table, "%.6f", delimiter=",", header=POSE_HEADER, comments="")
    views = [f"View{i + 1}" for i in range(shape.views)]
    for i, view in enumerate(views):
        (folder / "images" / view).mkdir(parents=True)
        for k in range(int(shape.seconds * IMAGE_HZ)):
            # What follows a picture's end marker is not decoded, but makes the file another one.
            picture = pictures[(i + k) % len(pictures)] + f"{index} {view} {k}".encode()
            (folder / "images" / view / f"{START + k / IMAGE_HZ:.6f}.jpg").write_bytes(picture)
    metadata = {
        "camera_views": views,
        "sensor_hz": SENSOR_HZ,
        "robot_hz": ROBOT_HZ,
        "sensor_window_size": shape.window_rows,
        "sensor_windows_count": len(window_ends(shape)),
        "robot_states_count": num_poses,
        "instruction": "Insert the needle",
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))


def _picture(size: tuple[int, int], seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 16, 3), np.uint8))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.int16)
    pixels = np.clip(pixels + rng.normal(0, 5, pixels.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
