import re

import numpy as np
import pytest

from tests.vla_jax.recordings.recorded_episodes import START, jpeg, poses_csv, sensor_rows
from vla_jax.dataset.options import PrepareOptions
from vla_jax.dataset.preparation import prepare
from vla_jax.recordings.capture import CaptureOptions, CaptureReader

NAMES = {"plural": ("forces", "alines"), "singular": ("force", "aline")}


def write_capture_episode(folder, *, names=("forces", "alines"), num_rows=650, **arrays):
    folder.mkdir(parents=True)
    times = START + np.arange(201) / 100
    poses = np.cumsum(np.random.default_rng(0).normal(0, 0.02, (201, 6)), axis=0)
    (folder / "robot_state_20250101.csv").write_text(poses_csv(times, poses))
    rows = sensor_rows(num_rows)
    stored = {names[0]: rows[:, 0], names[1]: rows[:, 1:], "timestamps": START + np.arange(num_rows) / 650}
    np.savez(folder / "sensor_data_20250101.npz", **(stored | arrays))
    for place in ("View1/left", "View1/right", "View3"):
        (folder / place).mkdir(parents=True)
        for k in range(10):
            (folder / place / f"zed_41182735_{START + 0.2 * k + 0.004:.6f}.jpg").write_bytes(jpeg(k))
    return folder


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_reads_both_names_of_the_arrays_and_both_view_layouts(names, tmp_path):
    folder = write_capture_episode(tmp_path / "Green_point" / "data_collection_1", names=names)
    packed = prepare([str(tmp_path)], tmp_path / "d", PrepareOptions()).dataset
    assert packed.meta.views == ("View1_left", "View1_right", "View3")
    assert packed.episodes[0].format == "capture"
    assert packed.records[0].prompt == "Perform Green point insertion task."
    np.testing.assert_array_equal(packed.sensor, sensor_rows(650))
    # 650 rows last one second; later ticks see the newest for one second more.
    newest = packed.sensor_windows(np.arange(20), 5)[:, -1, 0].astype(float) * 64
    np.testing.assert_allclose(newest, np.minimum(np.arange(20) * 65, 649))
    np.testing.assert_allclose(packed.ticks.time, START + np.arange(20) / 10)
    # The first pictures are 4 ms younger than the first pose: the first tick has none.
    assert packed.ticks.instant[0] == -1
    assert packed.ticks.instant[1] == 0
    assert folder.name == packed.episodes[0].name


def test_pictures_far_from_every_pose_are_dropped_and_counted(tmp_path):
    folder = write_capture_episode(tmp_path / "t" / "e")
    (folder / "View3" / f"x_{START + 9:.3f}.jpg").write_bytes(jpeg(1))
    recording = CaptureReader().read(folder)
    assert len(recording.views["View3"]) == 10
    assert recording.notes == ["1 of 31 pictures dropped: no pose within 10 ms of them"]
    strict = CaptureReader().read(folder, CaptureOptions(match_limit_ms=1.0))
    assert strict.views == {}
    assert strict.notes == ["31 of 31 pictures dropped: no pose within 1 ms of them"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"alines": np.zeros((650, 1024), np.float32)}, r"expected \(650, 1025\)"),
        ({"forces": np.zeros((649,), np.float32)}, "for 649 forces"),
        ({"timestamps": np.zeros(650)}, "times must ascend"),
        ({"timestamps": np.arange(3.0)}, r"\(3,\) timestamps for 650 forces"),
    ],
)
def test_arrays_that_do_not_fit_are_faults(arrays, message, tmp_path):
    faults = CaptureReader().read(write_capture_episode(tmp_path / "t" / "e", **arrays)).faults
    assert len(faults) == 1
    assert re.search(message, faults[0])


def test_force_alone_is_described_and_packed_without_sensor(tmp_path):
    folder = write_capture_episode(tmp_path / "t" / "e")
    np.savez(folder / "sensor_data_20250101.npz", forces=np.zeros(9), timestamps=START + np.arange(9.0))
    recording = CaptureReader().read(folder)
    assert recording.sensor is None
    assert "no A-scan" in recording.notes[0]
    assert recording.faults == []


def test_two_state_files_are_a_fault(tmp_path):
    folder = write_capture_episode(tmp_path / "t" / "e")
    (folder / "robot_state_2.csv").write_text("")
    assert "2 such files" in CaptureReader().read(folder).faults[0]
