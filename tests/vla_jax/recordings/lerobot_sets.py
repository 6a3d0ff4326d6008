"""Writes small LeRobot data sets, v2.1 and v3.0, as the lerobot package lays them out."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from tests.commands import REPOSITORY
from vla_jax.publishing.video import own_priority

SHIPPED = REPOSITORY / "tests" / "data" / "lerobot"
JOINTS = tuple(f"{arm}_{i}.pos" for arm in ("left", "right") for i in range(7))
CAMERAS = ("observation.images.top", "observation.images.wrist")
DATA_PATHS = {
    "v2.1": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "v3.0": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
VIDEO_PATHS = {
    "v2.1": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    "v3.0": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}


@dataclass(frozen=True)
class WrittenSet:
    """numbers: feature → all rows; pictures: camera → all rows' pictures; tasks: text of each row."""

    folder: Path
    numbers: dict[str, np.ndarray]
    pictures: dict[str, np.ndarray]
    tasks: list[str]


def write_set(
    folder: Path,
    version: str = "v3.0",
    lengths: tuple[int, ...] = (8, 6),
    *,
    fps: int = 20,
    numbers: dict[str, np.ndarray] | None = None,
    tasks: list[str] | None = None,
    cameras: tuple[str, ...] = CAMERAS,
    pictures_as: str = "video",
    codec: str = "libx264",
    size: tuple[int, int] = (32, 48),
    keyframe_every: int = 4,
) -> WrittenSet:
    """Writes a data set whose rows are `numbers` (feature → all rows), by default states and actions of 14 joints."""
    rng, total = np.random.default_rng(5), sum(lengths)
    if numbers is None:
        numbers = {
            "observation.state": rng.normal(size=(total, 14)).astype(np.float32),
            "action": rng.normal(size=(total, 14)).astype(np.float32),
        }
    tasks = tasks or [f"task {episode % 2}" for episode, length in enumerate(lengths) for _ in range(length)]
    pictures = {camera: _pictures(total, size, i) for i, camera in enumerate(cameras)}
    texts = list(dict.fromkeys(tasks))
    starts = np.cumsum([0, *lengths]).tolist()
    features = {key: _feature(values) for key, values in numbers.items()}
    features |= {
        key: {"dtype": kind, "shape": [1], "names": None}
        for key, kind in (("timestamp", "float32"), *((name, "int64") for name in _BOOK))
    }
    for camera in cameras:
        features[camera] = {
            "dtype": pictures_as,
            "shape": [*size, 3],
            "names": ["height", "width", "channels"],
        }
    tables = [
        _table(numbers, pictures if pictures_as == "image" else {}, tasks, texts, starts, e, fps)
        for e in range(len(lengths))
    ]
    is_new = version == "v3.0"
    values = [
        {"episode_chunk": 0, "episode_index": e, "chunk_index": 0, "file_index": 0}
        for e in range(len(lengths))
    ]
    for group in [list(range(len(lengths)))] if is_new else [[e] for e in range(len(lengths))]:
        path = _made(folder / DATA_PATHS[version].format(**values[group[0]]))
        pyarrow.parquet.write_table(pyarrow.concat_tables([tables[e] for e in group]), path)
        for camera in cameras if pictures_as == "video" else ():
            video = _made(folder / VIDEO_PATHS[version].format(**values[group[0]], video_key=camera))
            shown = pictures[camera][starts[group[0]] : starts[group[-1] + 1]]
            _write_video(video, shown, fps, codec, keyframe_every)
    info = {
        "codebase_version": version,
        "robot_type": "made up",
        "total_episodes": len(lengths),
        "total_frames": total,
        "total_tasks": len(texts),
        "chunks_size": 1000,
        "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": DATA_PATHS[version],
        "video_path": VIDEO_PATHS[version],
        "features": features,
    }
    _made(folder / "meta/info.json").write_text(json.dumps(info, indent=4))
    rows = [
        {
            "episode_index": e,
            "tasks": list(dict.fromkeys(tasks[starts[e] : starts[e + 1]])),
            "length": lengths[e],
        }
        for e in range(len(lengths))
    ]
    if is_new:
        for e, row in enumerate(rows):
            row |= {"data/chunk_index": 0, "data/file_index": 0}
            row |= {"dataset_from_index": starts[e], "dataset_to_index": starts[e + 1]}
            for camera in cameras if pictures_as == "video" else ():
                row |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": 0}
                row |= {f"videos/{camera}/from_timestamp": starts[e] / fps}
                row |= {f"videos/{camera}/to_timestamp": starts[e + 1] / fps}
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, _made(folder / "meta/episodes/chunk-000/file-000.parquet"))
        table = pyarrow.table({"task_index": range(len(texts)), "__index_level_0__": texts})
        pyarrow.parquet.write_table(table, folder / "meta/tasks.parquet")
    else:
        lines = {"episodes": rows, "tasks": [{"task_index": i, "task": text} for i, text in enumerate(texts)]}
        for name, objects in lines.items():
            text = "".join(f"{json.dumps(value)}\n" for value in objects)
            (folder / f"meta/{name}.jsonl").write_text(text)
    return WrittenSet(folder, numbers, pictures, tasks)


_BOOK = ("frame_index", "episode_index", "index", "task_index")


def _feature(values: np.ndarray) -> dict:
    shape = list(values.shape[1:])
    names = list(JOINTS) if shape == [14] else None
    return {"dtype": values.dtype.name, "shape": shape, "names": names}


def _table(numbers, pictures, tasks, texts, starts, episode, fps) -> pyarrow.Table:
    rows = np.arange(starts[episode], starts[episode + 1])
    columns = {key: _column(values[rows]) for key, values in numbers.items()}
    own = rows - starts[episode]
    columns["timestamp"] = pyarrow.array((own / fps).astype(np.float32))
    book = (own, np.full(len(rows), episode), rows, [texts.index(tasks[row]) for row in rows])
    columns |= {
        name: pyarrow.array(values, pyarrow.int64()) for name, values in zip(_BOOK, book, strict=True)
    }
    for camera, shown in pictures.items():
        columns[camera] = pyarrow.array(
            [{"bytes": _png(shown[row]), "path": f"frame-{row:06d}.png"} for row in rows]
        )
    return pyarrow.table(columns)


def _column(values: np.ndarray) -> pyarrow.Array:
    if values.ndim == 2:
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), values.shape[1])
    return pyarrow.array(
        values.tolist(), pyarrow.list_(pyarrow.list_(pyarrow.from_numpy_dtype(values.dtype)))
    )


def _pictures(count: int, size: tuple[int, int], camera: int) -> np.ndarray:
    """Pictures that survive encoding and differ from row to row: a ramp whose brightness tells the row."""
    ramp = np.linspace(0, 40, size[1])[None, None, :, None] + np.zeros((count, *size, 3))
    steps = (np.arange(count) * 37 + 60 * camera) % 200
    return (ramp + steps[:, None, None, None]).astype(np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def _write_video(path: Path, pictures: np.ndarray, fps: int, codec: str, keyframe_every: int) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=fps, options={"g": str(keyframe_every), "crf": "15"})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        with own_priority():
            for pixels in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
