"""Live streams as `windows` episodes: read by `prepare`, whatever ended the recording."""

import errno
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.commands import REPOSITORY
from tests.vla_jax.live.streams_of_a_test import START, jpeg, picture, send_seconds, sensor, state
from vla_jax.dataset.episode_packing import pack_episode
from vla_jax.dataset.options import EpisodeOptions
from vla_jax.dataset.packed_episode import load_packed
from vla_jax.errors import UserError
from vla_jax.live import recorder as recorder_module
from vla_jax.live.recorder import EpisodeRecorder, task_of
from vla_jax.live.streams import Picture
from vla_jax.recordings.discovery import find_episodes
from vla_jax.recordings.windows import WindowsReader


def read(folder):
    """Returns the recordings below a folder, as `prepare` finds them."""
    return [WindowsReader().read(found.path) for found in find_episodes([str(folder)])]


def test_an_episode_holds_what_came(tmp_path):
    finished = []
    recorder = EpisodeRecorder(
        tmp_path, prompt="Insert at the blue point", on_finished=lambda *told: finished.append(told)
    )
    send_seconds(recorder, 2.0)
    recorder.command([0.1, 0, -0.2, 0, 0, 0, 1], START + 1)
    recorder.episode_end(START + 2)
    recorder.close()
    (recording,) = read(tmp_path)
    assert not recording.faults
    assert not recording.notes
    assert recording.instruction == "Insert at the blue point"
    assert recording.folder.parent.name == "Insert_at_the_blue_point"
    np.testing.assert_allclose(recording.times, START + 0.01 * np.arange(200), atol=1e-6)
    np.testing.assert_allclose(recording.state[:, 0], 0.01 * np.arange(200), atol=1e-6)
    rows = np.concatenate(list(recording.sensor.rows.blocks(100)))
    assert rows[:, 0, 0].tolist() == list(range(1300))
    np.testing.assert_allclose(recording.sensor.end_times, START + np.arange(1300) / 650, atol=1e-6)
    assert {view: len(frames) for view, frames in recording.views.items()} == {"View1": 10, "View2": 10}
    metadata = json.loads((recording.folder / "metadata.json").read_text())
    assert metadata["camera_views"] == ["View1", "View2"]
    assert "unfinished" not in metadata
    assert finished == [(recording.folder, pytest.approx(1.99))]
    assert recorder.counts["episodes"] == 1
    assert (
        (recording.folder / "commands.csv")
        .read_text()
        .splitlines()[1]
        .endswith("0.100000,0.000000,-0.200000,0.000000,0.000000,0.000000")
    )


def test_an_episode_begins_with_a_state_and_has_what_came_a_second_before(tmp_path):
    recorder = EpisodeRecorder(tmp_path, prompt="P", task="Task")
    recorder.picture(picture("View1", -10))  # two seconds before
    for first in range(-1300, 0, 13):
        recorder.sensor(sensor(first))
    recorder.picture(picture("View1", -1))
    send_seconds(recorder, 1.0)
    recorder.episode_end(START + 1)
    send_seconds(recorder, 1.0, start=3.0)
    recorder.close()
    first, second = read(tmp_path)
    assert first.folder.parent.name == "Task"
    forces = np.concatenate(list(first.sensor.rows.blocks(9999)))[:, 0, 0]
    assert -660 < forces[0] < -560
    assert forces[-1] == 649
    assert first.views["View1"][0].time == pytest.approx(START - 0.21)
    assert second.times[0] == pytest.approx(START + 3)


def test_what_is_damaged_or_late_leaves_the_episode_whole(tmp_path):
    recorder = EpisodeRecorder(tmp_path, prompt="P")
    recorder.picture(Picture("View1", START, START, b"\xff\xd8 no picture \xff\xd9"))
    recorder.sensor(sensor(13))
    recorder.sensor(sensor(0))
    for k in (0, 2, 1, 1, 3):
        recorder.state(state(k))
    recorder.picture(picture("View1", 0))
    recorder.picture(picture("View1", 0))
    recorder.picture(Picture("View1", START + 1, START, jpeg()[:-40] + b"\xff\xd9"))
    recorder.close()
    (recording,) = read(tmp_path)
    assert not recording.faults
    assert len(recording.views["View1"]) == 1
    assert recording.state[:, 0].tolist() == [0.0, 0.01, 0.02, 0.03]
    assert np.concatenate(list(recording.sensor.rows.blocks(99)))[:, 0, 0].tolist() == list(range(26))
    assert recorder.counts["damaged"] == 2
    assert recorder.counts["repeated"] == 1
    assert recorder.counts["late"] == 1


def test_where_states_stop_for_long_another_episode_begins(tmp_path):
    recorder = EpisodeRecorder(tmp_path, prompt="P")
    for k in (*range(50), *range(90, 140), *range(200, 250)):
        recorder.state(state(k))
    recorder.close()
    first, second = read(tmp_path)
    assert len(first.times) == 100
    assert len(second.times) == 50


def test_a_clock_that_jumps_leaves_the_episode_whole(tmp_path):
    recorder = EpisodeRecorder(tmp_path, prompt="P")
    for k in range(20):
        recorder.state(state(k, offset=3.0))
        recorder.sensor(sensor(13 * k, offset=3.0 if k < 10 else -400.0, epoch=int(k >= 10)))
    recorder.close()
    (recording,) = read(tmp_path)
    assert not recording.faults
    assert recording.sensor.rows.num_windows == 260
    np.testing.assert_allclose(recording.sensor.end_times, START + np.arange(260) / 650, atol=1e-6)


def test_streams_do_not_wait_for_a_slow_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "MAX_WAITING", 50)
    recorder = EpisodeRecorder(tmp_path, prompt="P")
    monkeypatch.setattr(recorder_module.EpisodeFiles, "sync", lambda self: time.sleep(0.3))
    began = time.monotonic()
    taken = 0
    while time.monotonic() < began + 0.6:
        recorder.state(state(recorder.counts["dropped"]))
        taken += 1
    recorder.close()
    assert taken > 50  # Two would have waited for the disk.
    assert recorder.counts["dropped"] > 0
    assert recorder.failure is None


def test_a_full_disk_is_told_and_ends_the_recording(tmp_path, monkeypatch):
    recorder = EpisodeRecorder(tmp_path, prompt="P")

    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recorder_module.EpisodeFiles, "sync", full)
    send_seconds(recorder, 0.5)
    recorder.close()
    assert "No space left" in recorder.failure
    assert recorder.counts["episodes"] == 0


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        EpisodeRecorder(tmp_path / "file", prompt="P")


def test_the_folder_of_a_prompt():
    assert task_of("Insert the needle, at point 3!") == "Insert_the_needle_at_point_3"
    assert task_of("插入") == "Recorded"


KILLED = """
import sys, time
from pathlib import Path
from tests.vla_jax.live.streams_of_a_test import send_seconds
from vla_jax.live.recorder import EpisodeRecorder
recorder = EpisodeRecorder(Path(sys.argv[1]), prompt="P", task="Task")
began = time.monotonic()
for step in range(1000):
    send_seconds(recorder, 0.1, start=0.1 * step)
    print(step, flush=True)
    time.sleep(max(began + 0.1 * (step + 1) - time.monotonic(), 0))
"""


def test_what_came_a_second_before_a_kill_is_there(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    sent = 0
    while sent < 19:
        sent = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    last = START + 0.1 * sent
    (recording,) = read(tmp_path)
    assert not recording.faults
    assert any("cut off" in note for note in recording.notes)
    assert recording.times[-1] >= last - 1.0
    assert recording.sensor.end_times[-1] >= last - 1.0
    assert recording.views["View2"][-1].time >= last - 1.2
    # The disk's share: a torn line, a torn row, and zeros behind them.
    with (recording.folder / "robot_states.csv").open("ab") as file:
        file.write(b"1790000000.5,17900" + b"\0" * 20)
    with (recording.folder / "sensor_rows.bin").open("ab") as file:
        file.write(b"\0" * 5000)
    (again,) = read(tmp_path)
    assert not again.faults
    assert len(again.times) == len(recording.times)
    assert again.sensor.rows.num_windows == recording.sensor.rows.num_windows
    (found,) = find_episodes([str(tmp_path)])
    findings = pack_episode(found, EpisodeOptions(), tmp_path / "packed", "digest")
    assert [finding for finding in findings if finding.is_fault] == []
    arrays = load_packed(tmp_path / "packed").arrays
    # Each tick but the first sees a whole window that ends at it.
    np.testing.assert_allclose(arrays["sensor_time"][1:], arrays["time"][1:], atol=0.003)
    np.testing.assert_allclose(arrays["delta"][:, 0], 0.1, atol=1e-3)
