"""Episodes on disk: the `windows` format."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.phantom.camera import VIEWS
from experiments.phantom.episode_writer import sensor_windows, write_episode
from experiments.phantom.recording import record_demonstration
from experiments.phantom.simulator import PhantomSimulator

START = 1_700_000_000.0


@pytest.fixture(scope="module")
def recording():
    return record_demonstration(PhantomSimulator(image_size=28), np.random.SeedSequence(0))


def written(recording, tmp_path: Path, **options) -> Path:
    directory = tmp_path / "Task" / "episode_00000"
    options = {"start_time": START, "overlapping_windows": False, "ground_truth": {"episode": 0}} | options
    write_episode(directory, tmp_path / "staging", recording, **options)
    return directory


@pytest.fixture(scope="module")
def episode(recording, tmp_path_factory):
    return written(recording, tmp_path_factory.mktemp("episode"))


def test_metadata_has_the_keys_of_the_format(episode, recording):
    metadata = json.loads((episode / "metadata.json").read_text())
    assert metadata["episode_name"] == "episode_00000"
    assert metadata["camera_views"] == list(VIEWS)
    assert (metadata["sensor_hz"], metadata["robot_hz"], metadata["sensor_window_size"]) == (650, 100, 65)
    assert (metadata["action_horizon"], metadata["action_dim"]) == (8, 7)
    assert metadata["start_time"] == pytest.approx(START - 0.1)
    assert metadata["end_time"] == pytest.approx(START + recording.pose_times_s[-1])
    assert metadata["instruction"] == recording.scenario.instruction
    assert metadata["phantom"]["episode"] == 0
    assert metadata["phantom"]["scenario"]["target_mm"] == recording.scenario.target_mm
    names = {segment["name"] for segment in metadata["segments"]}
    assert names == {"align", "approach", "insert", "near_target", "hold"}
    for segment in metadata["segments"]:
        assert START - 0.1 < segment["start"] < segment["end"] < metadata["end_time"] + 0.1


def test_counts_agree_with_the_files(episode):
    metadata = json.loads((episode / "metadata.json").read_text())
    with np.load(episode / "sensor_data.npz") as arrays:
        assert len(arrays["data"]) == len(arrays["timestamps"]) == metadata["sensor_windows_count"]
    for view in VIEWS:
        assert len(list((episode / "images" / view).iterdir())) == metadata["camera_frames_count"]
    assert len((episode / "robot_states.csv").read_text().splitlines()) == 1 + metadata["robot_states_count"]


def test_robot_states_are_the_recorded_poses(episode, recording):
    with open(episode / "robot_states.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("recv_timestamp", "origin_timestamp", "send_timestamp"),
        *(f"joint_{i}" for i in range(1, 7)),
        *("pose_x", "pose_y", "pose_z", "pose_a", "pose_b", "pose_r"),
    ]
    pose = np.array([[float(row[f"pose_{axis}"]) for axis in "xyzabr"] for row in rows])
    np.testing.assert_allclose(pose, recording.poses, atol=1e-6)
    origin = np.array([float(row["origin_timestamp"]) for row in rows])
    np.testing.assert_allclose(origin, START + recording.pose_times_s, atol=2e-6)
    assert all(0 < float(row["recv_timestamp"]) - float(row["origin_timestamp"]) < 0.002 for row in rows)
    assert all(abs(float(row["joint_6"])) < 30 for row in rows)


def test_windows_join_into_the_recorded_stream(episode, recording):
    with np.load(episode / "sensor_data.npz") as arrays:
        data, timestamps = arrays["data"], arrays["timestamps"]
    assert data.dtype == np.float16
    assert data.shape[1:] == (65, 1026)
    np.testing.assert_array_equal(data.reshape(-1, 1026), recording.sensor)
    np.testing.assert_allclose(np.diff(timestamps), 0.1, atol=1e-6)
    assert timestamps[0] == pytest.approx(START - 1 / 650, abs=1e-6)  # of the window's last sample
    assert (episode / "sensor_data.npz").stat().st_size < 30e6


def test_images_are_named_by_their_time_and_never_later_than_the_state_they_show(episode, recording):
    for view in VIEWS:
        names = sorted((episode / "images" / view).iterdir())
        times = np.array([float(path.stem) for path in names])
        np.testing.assert_allclose(np.diff(times), 0.2, atol=2e-6)
        assert times[0] == pytest.approx(START - 0.01)
        pixels = np.asarray(Image.open(names[3]))
        difference = pixels.astype(int) - recording.images[3][1][view]
        assert np.abs(difference).mean() < 6  # JPEG


def test_the_labs_windows_overlap(recording, tmp_path):
    data, last_row = sensor_windows(recording.sensor, overlapping=True)
    assert data.shape[1:] == (650, 1026)
    np.testing.assert_array_equal(data[3], recording.sensor[last_row[3] - 649 : last_row[3] + 1])
    rate = 650 / np.diff(last_row)
    np.testing.assert_allclose(rate, 5.6, rtol=0.01)
    assert sensor_windows(recording.sensor[:300], overlapping=True)[0].shape == (0, 650, 1026)


def test_an_episode_without_sensor_has_no_sensor_file(tmp_path):
    recording = record_demonstration(
        PhantomSimulator(image_size=28, has_sensor=False), np.random.SeedSequence(0)
    )
    directory = written(recording, tmp_path)
    assert not (directory / "sensor_data.npz").exists()
    metadata = json.loads((directory / "metadata.json").read_text())
    assert metadata["sensor_windows_count"] == 0
    assert metadata["start_time"] == pytest.approx(START - 0.1)


def test_nothing_appears_under_the_final_name_until_all_is_written(recording, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("experiments.phantom.episode_writer._write_images", fail)
    with pytest.raises(OSError, match="disk full"):
        written(recording, tmp_path)
    assert not (tmp_path / "Task").exists()
