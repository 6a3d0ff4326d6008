"""Samples exactly as the PyTorch reference's data set returns them, for those who compare with it.

The reference pairs by index: see `alignment="index"` in `vla_jax.dataset.alignment` and the notes below. Training does
not use this module.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.dataset.alignment import pose_deltas
from vla_jax.errors import UserError
from vla_jax.recordings import untrusted_files
from vla_jax.recordings.discovery import episode_format
from vla_jax.recordings.legacy import CONFIDENCE_WITHOUT_SENSOR, read_legacy_content
from vla_jax.recordings.recording import NUM_CHANNELS, EpisodeError, task_instruction
from vla_jax.recordings.windows import read_windows


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

    Raises:
        UserError: the folder is no such episode, or is damaged.
    """
    folder = Path(episode_dir)
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    kind = episode_format(names)
    try:
        if kind == "legacy":
            return _legacy_samples(folder, horizon, vlm_reuse_count, sensor_window_size, instruction)
        if kind == "windows":
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
    has_sensor = content.sensor is not None
    samples = []
    for step in range(max(0, (len(content.actions) - horizon) // horizon)):
        start = step * horizon
        sensor = content.sensor[start : start + window_size] if has_sensor else _no_rows()
        for reuse_step in range(reuse_count):
            samples.append(
                {
                    "instruction": instruction or content.instruction or task_instruction(folder),
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


def _windows_samples(
    folder: Path, horizon: int, reuse_count: int, window_size: int, action_hz: float, instruction: str | None
) -> list[dict[str, Any]]:
    recording = read_windows(folder, instruction)
    if recording.faults:
        raise EpisodeError(recording.faults[0])
    if recording.poses is None:
        return []
    interval = max(1, int(recording.robot_hz // action_hz))
    # The reference keeps poses in float32 and subtracts there.
    deltas = pose_deltas(recording.poses.astype(np.float32)[::interval])
    windows = None
    if recording.sensor is not None:
        windows = np.concatenate(list(recording.sensor.rows.blocks(untrusted_files.MAX_SMALL_ARRAY_BYTES)))
    samples = []
    for index in range(max(0, (len(recording.poses) - interval) // interval)):
        vlm_idx = index // reuse_count * reuse_count * interval
        sensor = _no_rows() if windows is None else windows[min(index, len(windows) - 1)]
        samples.append(
            {
                "instruction": recording.instruction,
                "images": [
                    view.paths[min(vlm_idx, len(view.paths) - 1)] for view in recording.views.values()
                ],
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
    filled = np.zeros((max(size, len(rows)), NUM_CHANNELS), np.float32)
    filled[: len(rows)] = rows
    return filled
