"""Samples exactly as the PyTorch reference's data set returns them, for those who compare with it.

The reference pairs by index: see `alignment="index"` in `vla_jax.dataset.alignment` and the notes below. Training does
not use this module.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.errors import UserError
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.lab import NUM_CHANNELS, pose_deltas
from vla_jax.recordings.legacy import (
    CONFIDENCE_WITHOUT_SENSOR,
    LegacyContent,
    LegacyReader,
    read_legacy_content,
    sensor_file,
)
from vla_jax.recordings.untrusted_files import read_json_object
from vla_jax.recordings.windows import WindowsReader, listed_views

LEGACY_INSTRUCTION = "Perform needle insertion task."
MAX_BLOCK_ROWS = 1 << 20


def reference_samples(
    episode_dir: str | Path,
    *,
    horizon: int,
    vlm_reuse_count: int,
    sensor_window_size: int,
    action_hz: float = 10,
    instruction: str | None = None,
) -> Sequence[dict[str, Any]]:
    """Returns the reference's samples of one `legacy` or `windows` episode.

    Each is a dictionary: "instruction"; "images", one path per view in order of the views' names, relative to the
    episode for `windows` and as stored for `legacy` ("" where missing); "sensor_data" (T, 1026) f32; "actions"
    (horizon, 7) f32; "has_sensor"; "cache_key", "vlm_idx", "reuse_step" of the reference's feature cache;
    "confidence".

    What the reference does, for better or worse: a legacy chunk is shown `vlm_reuse_count` times, its last full chunk
    is dropped, and its sensor window begins at the action's row; a `windows` sample k gets stored window
    min(k, N − 1) at its stored length when that exceeds `sensor_window_size`; shorter windows are filled up
    with zeros; pictures are taken by the pose's (the action's) index, cut to the list's length.

    Of incomplete episodes it makes what it can, where training's own reading is stricter (it refuses the sensor data
    that are filled up here, and takes all views where the metadata names none): no `camera_views` in the metadata
    gives no pictures; a legacy episode without instruction gets "Perform needle insertion task."; legacy sensor data
    with fewer rows than actions, and a missing `force` or `fpi`, are filled up with zeros; `sensor_data.npy` beside a
    data.pkl without `sensor_data` is not looked at.

    Raises:
        UserError: the folder is no such episode, or is damaged.
    """
    folder = Path(episode_dir)
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    try:
        if LegacyReader().recognises(names):
            return _legacy_samples(folder, horizon, vlm_reuse_count, sensor_window_size, instruction)
        if WindowsReader().recognises(names):
            return _windows_samples(
                folder, horizon, vlm_reuse_count, sensor_window_size, action_hz, instruction
            )
    except EpisodeError as error:
        raise UserError(f"{folder}: {error}") from error
    raise UserError(
        f"{folder}: holds neither data.pkl nor metadata.json; the reference reads no other episodes"
    )


def _legacy_samples(
    folder: Path, horizon: int, reuse_count: int, window_size: int, instruction: str | None
) -> list[dict[str, Any]]:
    content = read_legacy_content(folder)
    rows = _legacy_sensor(folder, content)
    has_sensor = rows is not None
    samples = []
    for step in range(max(0, (len(content.actions) - horizon) // horizon)):
        start = step * horizon
        sensor = _no_rows() if rows is None else rows[start : start + window_size]
        for reuse_step in range(reuse_count):
            samples.append(
                {
                    "instruction": instruction or content.instruction or LEGACY_INSTRUCTION,
                    "images": [
                        paths[min(start, len(paths) - 1)] or "" for paths in content.image_paths.values()
                    ],
                    "sensor_data": _filled(sensor, window_size),
                    "actions": content.actions[start : start + horizon].copy(),
                    "has_sensor": has_sensor,
                    "cache_key": f"{folder.name}_vlm{start}",
                    "vlm_idx": start,
                    "reuse_step": reuse_step,
                    "confidence": 1.0 if has_sensor else CONFIDENCE_WITHOUT_SENSOR,
                }
            )
    return samples


def _legacy_sensor(folder: Path, content: LegacyContent) -> np.ndarray | None:
    """Returns sensor rows (T, 1026), or more, filled up with zeros where fewer or only some channels were stored."""
    stored, num_actions = content.sensor_data, len(content.actions)
    if stored is None:
        return None
    beside = sensor_file(folder, num_actions)
    if beside is not None:
        return beside
    parts = (
        {"force": 1, "fpi": NUM_CHANNELS - 1} if isinstance(stored, dict) else {"sensor_data": NUM_CHANNELS}
    )
    given = stored if isinstance(stored, dict) else {"sensor_data": stored}
    rows = []
    for name, width in parts.items():
        part = np.zeros((0, width)) if given.get(name) is None else np.asarray(given[name])
        part = part[:, None] if part.ndim == 1 and width == 1 else part
        if part.ndim != 2 or part.shape[1] != width or part.dtype.kind not in "fiu":
            raise EpisodeError(
                f"data.pkl: {name} is {part.shape} {part.dtype}, expected numbers (T, {width})"
            )
        rows.append(_filled(part, num_actions))
    # Parts of different lengths: the shorter one is filled up too.
    length = max(map(len, rows))
    return np.concatenate([_filled(part, length) for part in rows], axis=1)


def _windows_samples(
    folder: Path, horizon: int, reuse_count: int, window_size: int, action_hz: float, instruction: str | None
) -> list[dict[str, Any]]:
    recording = WindowsReader().read(folder)
    if recording.faults:
        raise EpisodeError(recording.faults[0])
    if recording.state is None:
        return []
    interval = max(1, int(recording.rate_hz // action_hz))
    # The reference keeps poses in float32 and subtracts there.
    deltas = pose_deltas(recording.state.astype(np.float32)[::interval])
    views = recording.views if listed_views(read_json_object(folder / "metadata.json")) else {}
    windows = None
    if recording.sensor is not None:
        windows = np.concatenate(list(recording.sensor.rows.blocks(MAX_BLOCK_ROWS)))
    samples = []
    for index in range(max(0, (len(recording.state) - interval) // interval)):
        vlm_idx = index // reuse_count * reuse_count * interval
        sensor = _no_rows() if windows is None else windows[min(index, len(windows) - 1)]
        samples.append(
            {
                "instruction": instruction or recording.instruction,
                "images": [frames[min(vlm_idx, len(frames) - 1)].locator for frames in views.values()],
                "sensor_data": _filled(sensor, window_size),
                "actions": deltas[np.minimum(index + np.arange(horizon), len(deltas) - 1)],
                "has_sensor": windows is not None,
                "cache_key": f"{folder.name}_vlm{vlm_idx}",
                "vlm_idx": vlm_idx,
                "reuse_step": index % reuse_count,
                "confidence": 1.0,
            }
        )
    return samples


def _no_rows() -> np.ndarray:
    return np.empty((0, NUM_CHANNELS), np.float32)


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    """Returns float32 rows, filled up with zero rows to `size`."""
    filled = np.zeros((max(size, len(rows)), rows.shape[1]), np.float32)
    filled[: len(rows)] = rows
    return filled
