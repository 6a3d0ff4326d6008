"""`to-lerobot` as a user calls it."""

import json
import signal
import time

from tests.commands import error_line, run_command, start_command
from tests.vla_jax.recordings.lerobot_sets import SHIPPED
from tests.vla_jax.recordings.recorded_episodes import write_data_set


def test_episodes_are_published_as_they_are_found(tmp_path):
    write_data_set(tmp_path / "s", 2, seconds=1.0)
    done = run_command("to_lerobot", tmp_path / "s", "--out", tmp_path / "out", "--workers", 1)
    assert done.stdout == f"{tmp_path}/out: 2 episodes, 18 rows\n"
    assert "recorded episodes, read with the defaults of `prepare`: 2 used, 0 faulty" in done.stderr
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["features"]["observation.sensor"]["shape"] == [65, 1026]
    assert info["features"]["action"]["info"]["units"] == ["mm", "mm", "mm", "deg", "deg", "deg", ""]


def test_mistakes_are_one_line(tmp_path):
    done = run_command("to_lerobot", tmp_path / "none", "--out", tmp_path / "out", status=2)
    assert "no such" in error_line(done)
    done = run_command("to_lerobot", SHIPPED / "v30", "--out", SHIPPED, status=2)
    assert "exists; choose a new folder" in error_line(done)


def test_killed_it_leaves_nothing_under_its_name_and_goes_on(tmp_path):
    write_data_set(tmp_path / "s", 6, seconds=2.0)
    run_command("prepare", tmp_path / "s", "--out", tmp_path / "data")
    words = (tmp_path / "data", "--out", tmp_path / "out", "--workers", 1)
    process, building = start_command("to_lerobot", *words), tmp_path / ".out.building"
    while not list(building.glob("episode_*")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out").exists()
    assert run_command("to_lerobot", *words).stdout.startswith(f"{tmp_path}/out: 6 episodes")
    assert not building.exists()
