"""Pipes and devices where recordings belong: reading one would never end."""

import os
import signal

import pytest

from tests.vla_jax.recordings.recorded_episodes import write_windows_episode
from tests.vla_jax.recordings.test_capture import write_capture_episode
from tests.vla_jax.recordings.test_legacy import write_legacy_episode
from vla_jax.dataset.episode_packing import pack_episode
from vla_jax.dataset.options import EpisodeOptions
from vla_jax.recordings.discovery import find_episodes

WRITERS = {"windows": write_windows_episode, "capture": write_capture_episode, "legacy": write_legacy_episode}
FILES = [
    ("windows", "metadata.json"),
    ("windows", "robot_states.csv"),
    ("windows", "sensor_data.npz"),
    ("windows", "images/View1/*.jpg"),
    ("capture", "robot_state_20250101.csv"),
    ("capture", "sensor_data_20250101.npz"),
    ("capture", "View1/left/*.jpg"),
    ("legacy", "data.pkl"),
    ("legacy", "sensor_data.npy"),
]


@pytest.fixture
def alarm():
    """Ends a test that waits for a pipe."""

    def fail(*_):
        raise TimeoutError("still reading")

    signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.mark.parametrize("special", ["pipe", "device"])
@pytest.mark.parametrize(("kind", "pattern"), FILES, ids="/".join)
def test_a_file_without_end_is_a_fault(kind, pattern, special, tmp_path, alarm):
    folder = tmp_path / "t" / "e"
    WRITERS[kind](folder)
    path = next(iter(sorted(folder.glob(pattern))), folder / pattern)
    path.unlink(missing_ok=True)
    if special == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    episode = find_episodes([str(folder)])[0]
    findings = pack_episode(episode, EpisodeOptions(), tmp_path / "part", episode.reader.fingerprint(folder))
    faults = [finding.reason for finding in findings if finding.is_fault]
    assert len(faults) == 1
    assert f"{path.name}: is no ordinary file" in faults[0]
