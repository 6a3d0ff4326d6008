"""One published episode: its rows as parquet, a video for each camera, and its statistics, complete or absent."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.publishing.feature_statistics import picture_statistics, sampled, shrunk, vector_statistics
from vla_jax.publishing.features import BOOKKEEPING, SENSOR, camera_key, number_features, number_values
from vla_jax.publishing.settings import PublishOptions
from vla_jax.publishing.video import write_video
from vla_jax.storage.replacing import replace_folder, temporary_folder

ROWS_FILE, STATS_FILE = "rows.parquet", "statistics.json"
# Of a sensor window of the lab's size, a quarter of a megabyte each.
ROWS_PER_GROUP = 64


def visible_ticks(dataset: PackedDataset, episode: int) -> np.ndarray:
    """Returns the ticks of an episode from the first on at which all of the data set's views have a picture."""
    entry = dataset.episodes[episode]
    ticks = np.arange(entry.tick_start, entry.tick_stop)
    if not dataset.meta.views:
        return ticks
    instant = np.asarray(dataset.ticks.instant[ticks])
    seen = np.zeros(len(ticks), bool)
    seen[instant >= 0] = dataset.record_views[instant[instant >= 0]].all(axis=1)
    return ticks[int(np.argmax(seen)) :] if seen.any() else ticks[:0]


def write_episode(
    data: Path,
    members: tuple[int, ...],
    place: int,
    first_row: int,
    task: int,
    folder: Path,
    options: PublishOptions,
) -> int:
    """Writes episode `members[place]` of a packed data set into `folder` and returns how many rows it has.

    members: the packed episodes that are published; place: which of them this is. first_row: number of its first row
    among all. task: of its prompt.

    Raises:
        UserError: a picture cannot be read, or a camera's differ in size.
    """
    dataset = PackedDataset.open(data)
    ticks, fps = visible_ticks(dataset, members[place]), whole_fps(dataset)
    with temporary_folder(folder) as made:
        statistics = _write_rows(dataset, members, ticks, place, first_row, task, made / ROWS_FILE)
        for view in dataset.meta.views:
            counted: list[np.ndarray] = []
            pictures = _pictures(dataset, view, ticks, set(sampled(len(ticks)).tolist()), counted)
            write_video(made / f"{view}.mp4", pictures, fps, options)
            statistics[camera_key(view)] = _listed(picture_statistics(counted))
        (made / STATS_FILE).write_text(json.dumps(statistics), encoding="utf-8")
        replace_folder(made, folder)
    return len(ticks)


def whole_fps(dataset: PackedDataset) -> int:
    """Returns the control ticks a second. Raises UserError where that is no whole number: the format has no others."""
    rate = dataset.meta.action_hz
    if rate != round(rate) or rate < 1:
        raise UserError(
            f"{dataset.path}: LeRobot's rates are whole numbers, not {rate:g} Hz; prepare it at another"
        )
    return round(rate)


def _write_rows(
    dataset: PackedDataset,
    members: tuple[int, ...],
    ticks: np.ndarray,
    place: int,
    first_row: int,
    task: int,
    path: Path,
) -> dict[str, Any]:
    """Writes the parquet file and returns the statistics of all its features but the sensor windows."""
    import pyarrow.parquet

    fps = whole_fps(dataset)
    features = number_features(dataset, members)
    rows = np.arange(len(ticks))
    book = {
        "timestamp": (rows / fps).astype(np.float32),
        "frame_index": rows,
        "episode_index": np.full(len(rows), place),
        "index": first_row + rows,
        "task_index": np.full(len(rows), task),
    }
    whole = {key: number_values(dataset, key, ticks) for key in features if key != SENSOR} | book
    writer = None
    for start in range(0, len(ticks), ROWS_PER_GROUP):
        stop = min(start + ROWS_PER_GROUP, len(ticks))
        columns = {}
        for key in features:
            window = (
                number_values(dataset, key, ticks[start:stop]) if key == SENSOR else whole[key][start:stop]
            )
            columns[key] = _column(window, features[key]["shape"])
        columns |= {
            key: _column(book[key][start:stop].astype(kind), [1]) for key, kind in BOOKKEEPING.items()
        }
        table = pyarrow.table(columns)
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema, compression="snappy")
        writer.write_table(table)
    assert writer is not None, "an episode has rows"
    writer.close()
    return {key: _listed(vector_statistics(values)) for key, values in whole.items()}


def _column(values: np.ndarray, shape: list[int]) -> Any:
    """Returns rows as an arrow array: numbers, lists of fixed length, or lists of lists."""
    import pyarrow

    flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
    if shape == [1]:
        return flat
    if len(shape) == 1:
        return pyarrow.FixedSizeListArray.from_arrays(flat, shape[0])
    # As the datasets library stores arrays: lists whose lengths are not part of the type.
    for size in reversed(shape):
        flat = pyarrow.ListArray.from_arrays(np.arange(0, len(flat) + 1, size, dtype=np.int32), flat)
    return flat


def _pictures(
    dataset: PackedDataset, view: str, ticks: np.ndarray, wanted: set[int], counted: list[np.ndarray]
) -> Iterator[np.ndarray]:
    """Yields each tick's picture; what a tick shares with the one before is decoded once. counted: gets the wanted."""
    before, pixels = -1, None
    for row, tick in enumerate(ticks.tolist()):
        instant = int(dataset.ticks.instant[tick])
        if pixels is None or instant != before:
            (image,) = (image for image in dataset.records[instant].images if image.view == view)
            try:
                with image.open() as file, Image.open(file) as opened:
                    pixels = np.asarray(opened.convert("RGB"))
            except OSError as error:
                raise UserError(f"{image.path}: cannot be read ({error.strerror or error})") from error
            before = instant
        if row in wanted:
            counted.append(shrunk(pixels))
        yield pixels


def _listed(statistics: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: value.tolist() for name, value in statistics.items()}
