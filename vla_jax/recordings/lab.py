"""What the lab's three formats share: its arm's poses, its sensor, and the prompt that a task folder stands for."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from vla_jax.contracts.specs import LAB_ACTIONS, LAB_STATE, SensorSpec
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.untrusted_files import check_times

NUM_CHANNELS = SensorSpec().channels
"""Sensor channels: the force, then 1025 A-scan depth bins."""
SENSOR_HZ = 650.0
GRIPPER = 1.0

POSE_COLUMNS = tuple(f"pose_{name}" for name in LAB_STATE)
# Pictures and sensor windows are stamped by the machine that receives them, and so is `recv_timestamp`.
TIME_COLUMNS = ("recv_timestamp", "origin_timestamp", "send_timestamp", "timestamp")
# A kilometre, or thousands of turns.
MAX_POSE = 1e6


def task_instruction(folder: Path) -> str:
    """Returns the prompt for an episode that names none: the reference's sentence about its task folder."""
    task = folder.resolve().parent.name.replace("_", " ").strip()
    return f"Perform {task} insertion task."


def pose_columns(columns: dict[str, np.ndarray], file: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns times (n,) and poses (n, 6) from named columns, checked. Raises EpisodeError."""
    missing = [name for name in POSE_COLUMNS if name not in columns]
    time_column = next((name for name in TIME_COLUMNS if name in columns), None)
    if missing or time_column is None:
        missing += [] if time_column else ["recv_timestamp"]
        raise EpisodeError(f"{file}: column(s) {', '.join(missing)} are missing")
    arrays = [columns[name] for name in (time_column, *POSE_COLUMNS)]
    if any(array.ndim != 1 or len(array) != len(arrays[0]) for array in arrays):
        raise EpisodeError(f"{file}: its columns have different lengths")
    times, poses = arrays[0], np.stack(arrays[1:], axis=1)
    if not len(times):
        raise EpisodeError(f"{file}: has no rows")
    if not np.isfinite(poses).all():
        row, column = np.argwhere(~np.isfinite(poses))[0]
        raise EpisodeError(f"{file}: {POSE_COLUMNS[column]} is {poses[row, column]} in row {row + 1}")
    if np.abs(poses).max() > MAX_POSE:
        row, column = np.argwhere(np.abs(poses) > MAX_POSE)[0]
        raise EpisodeError(
            f"{file}: {POSE_COLUMNS[column]} is {poses[row, column]:g} in row {row + 1}, which is absurd"
        )
    check_times(times, file)
    return times, poses


def wrap_degrees(angles: np.ndarray) -> np.ndarray:
    """Returns angles wrapped to (−180, 180]; those that lie there keep their bits."""
    return np.where((angles > -180.0) & (angles <= 180.0), angles, 180.0 - np.mod(180.0 - angles, 360.0))


def pose_deltas(poses: Float[np.ndarray, "n 6"]) -> Float32[np.ndarray, "m 7"]:
    """Returns the n − 1 actions between successive poses (`LAB_ACTIONS`): mm, wrapped degrees, gripper 1."""
    deltas = np.empty((max(0, len(poses) - 1), LAB_ACTIONS.size), np.float32)
    difference = np.diff(poses, axis=0)
    deltas[:, :3] = difference[:, :3]
    deltas[:, 3:6] = wrap_degrees(difference[:, 3:])
    deltas[:, 6] = GRIPPER
    return deltas


def check_angle_jumps(times: np.ndarray, poses: np.ndarray) -> None:
    """Raises EpisodeError where an angle changes by more than an arm can turn between two poses.

    The limit is 900 degrees per second, at least 20 and at most 120 degrees per row.
    """
    change = np.abs(wrap_degrees(np.diff(poses[:, 3:], axis=0)))
    limit = np.clip(900.0 * np.diff(times), 20.0, 120.0)[:, None]
    if (change > limit).any():
        row, axis = np.argwhere(change > limit)[0]
        raise EpisodeError(
            f"pose_{'abr'[axis]} jumps by {change[row, axis]:.1f} degrees between rows {row + 1} and {row + 2} "
            f"({int((change > limit).any(axis=1).sum())} such place(s))"
        )
