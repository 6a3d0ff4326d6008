"""Writes a recording as a `windows` episode: metadata.json, robot_states.csv, sensor_data.npz, images/, and
corrections.csv where the arm was disturbed."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experiments.phantom.camera import VIEWS
from experiments.phantom.kinematics import joint_angles
from experiments.phantom.recording import Recording
from experiments.phantom.simulator import ROBOT_HZ, ROWS_PER_STEP, SENSOR_HZ, STEP_S
from vla_jax.contracts.specs import LAB_ACTIONS
from vla_jax.storage.replacing import replace_folder, temporary_folder

LAB_WINDOW_ROWS = 650
LAB_WINDOWS_HZ = 5.6
_JPEG_QUALITY = 92
_ROBOT_COLUMNS = (
    "recv_timestamp,origin_timestamp,send_timestamp,joint_1,joint_2,joint_3,joint_4,joint_5,joint_6,"
    "pose_x,pose_y,pose_z,pose_a,pose_b,pose_r"
)


def write_episode(
    directory: Path,
    staging: Path,
    recording: Recording,
    *,
    start_time: float,
    overlapping_windows: bool,
    ground_truth: dict,
) -> None:
    """Writes a recording to `directory`, which appears complete or not at all.

    staging: a directory on the same file system where the episode is put together before it is renamed.
    start_time: unix time of the first pose, s. ground_truth: written as metadata.json's `phantom`.
    """
    with temporary_folder(directory, within=staging) as folder:
        _write_files(folder, directory.name, recording, start_time, overlapping_windows, ground_truth)
        replace_folder(folder, directory)


def _write_files(
    folder: Path,
    name: str,
    recording: Recording,
    start_time: float,
    overlapping_windows: bool,
    ground_truth: dict,
) -> None:
    windows = None
    if recording.sensor is not None:
        windows, last_row = sensor_windows(recording.sensor, overlapping_windows)
        # Uncompressed: speckle does not compress, and readers can map the file.
        np.savez(
            folder / "sensor_data.npz",
            data=windows,
            timestamps=start_time + recording.sensor_times_s[last_row],
        )
    _write_robot_states(folder / "robot_states.csv", recording, start_time)
    _write_images(folder / "images", recording, start_time)
    if recording.corrections is not None:
        _write_corrections(folder / "corrections.csv", recording.corrections, start_time)
    metadata = {
        "episode_name": name,
        "start_time": start_time + float(recording.sensor_times_s[0]),
        "end_time": start_time + float(recording.pose_times_s[-1]),
        "camera_views": list(VIEWS) if recording.images else [],
        "sensor_hz": SENSOR_HZ,
        "robot_hz": ROBOT_HZ,
        "sensor_window_size": LAB_WINDOW_ROWS if overlapping_windows else ROWS_PER_STEP,
        "action_horizon": 8,
        "action_dim": 7,
        "camera_frames_count": len(recording.images),
        "sensor_windows_count": 0 if windows is None else len(windows),
        "robot_states_count": len(recording.poses),
        "instruction": recording.scenario.instruction,
        "task": recording.scenario.task,
        "robot": "Meca500 (simulated)",
        "segments": [
            {"name": s.name, "start": start_time + s.start_s, "end": start_time + s.end_s}
            for s in recording.segments
        ],
        "phantom": ground_truth | {"scenario": recording.scenario.to_json()},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def sensor_windows(stream: NDArray, overlapping: bool) -> tuple[NDArray, NDArray]:
    """Cuts a stream [n, 1026] into windows [m, w, 1026]; returns them and the index of each one's last row, [m].

    Ten windows of 65 rows a second that join without overlap; or, overlapping, the lab's windows of 650 rows, 5.6 a
    second (none in a stream of less than a second).
    """
    if overlapping:
        stride = round(SENSOR_HZ / LAB_WINDOWS_HZ)
        last_row = np.arange(LAB_WINDOW_ROWS - 1, len(stream), stride)
        return stream[last_row[:, None] + np.arange(1 - LAB_WINDOW_ROWS, 1)], last_row
    last_row = np.arange(ROWS_PER_STEP - 1, len(stream), ROWS_PER_STEP)
    return stream[: last_row[-1] + 1].reshape(len(last_row), ROWS_PER_STEP, -1), last_row


def _write_robot_states(path: Path, recording: Recording, start_time: float) -> None:
    """Writes the 100 Hz log; the robot stamps a state, sends it 0.2 ms later and it arrives 0.3 ms after that."""
    origin = start_time + recording.pose_times_s
    clocks = np.stack([origin + 0.0005, origin, origin + 0.0002], axis=1)
    table = np.hstack([clocks, joint_angles(recording.poses), recording.poses])
    formats = ["%.6f"] * 3 + ["%.5f"] * 6 + ["%.6f"] * 3 + ["%.7f"] * 3
    np.savetxt(path, table, fmt=formats, delimiter=",", header=_ROBOT_COLUMNS, comments="")


def _write_corrections(path: Path, corrections: NDArray, start_time: float) -> None:
    times = start_time + np.arange(len(corrections)) * STEP_S
    header = ",".join(["recv_timestamp", *LAB_ACTIONS.names])
    table = np.column_stack([times, corrections])
    np.savetxt(
        path, table, fmt=["%.6f"] + ["%.7f"] * LAB_ACTIONS.size, delimiter=",", header=header, comments=""
    )


def _write_images(directory: Path, recording: Recording, start_time: float) -> None:
    for time_s, images in recording.images:
        for view, pixels in images.items():
            (directory / view).mkdir(parents=True, exist_ok=True)
            name = f"{start_time + time_s:.6f}.jpg"
            Image.fromarray(pixels).save(directory / view / name, quality=_JPEG_QUALITY)
