"""`python -m experiments.phantom` as a user runs it."""

import json
import os
import signal
import time

from tests.commands import error_line, run_command, start_command

FAST = ("--image-size", 28, "--sensorless-fraction", 1.0, "--seed", 5)


def finished(out):
    return sorted(out.glob("[!.]*/episode_*"))


def test_help_explains_every_option():
    text = run_command("phantom", "--help").stdout
    for option in (
        "--episodes",
        "--seed",
        "--image-size",
        "--sensorless-fraction",
        "--overlapping-windows",
        "--workers",
    ):
        assert option in text


def test_mistakes_give_one_line_and_status_2(tmp_path):
    out = tmp_path / "out"
    assert "--episodes" in error_line(run_command("phantom", out, "--episodes", 0, status=2))
    assert "seed" in error_line(run_command("phantom", out, "--seed", -1, status=2))
    (tmp_path / "notes.txt").write_text("mine")
    assert "notes.txt" in error_line(run_command("phantom", tmp_path, status=2))
    assert not out.exists()


def test_a_killed_run_leaves_whole_episodes_and_goes_on(tmp_path):
    """SIGKILL in the middle of writing: what stands under a final name is complete, and nothing keeps running."""
    out = tmp_path / "out"
    process = start_command("phantom", out, *FAST, "--episodes", 400, "--workers", 2)
    deadline = time.monotonic() + 60
    while len(finished(out)) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    # Returns only when the workers, which hold the same pipes, have ended too.
    process.communicate(timeout=60)
    present = finished(out)
    assert 3 <= len(present) < 400
    for path in present:
        metadata = json.loads((path / "metadata.json").read_text())
        rows = (path / "robot_states.csv").read_text().splitlines()
        assert len(rows) == 1 + metadata["robot_states_count"]
        assert len(list(path.glob("images/*/*.jpg"))) == 3 * metadata["camera_frames_count"]
    wanted = 1 + max(int(path.name.removeprefix("episode_")) for path in present)
    done = run_command("phantom", out, *FAST, "--episodes", wanted, "--workers", 1)
    assert f"{wanted} episodes" in done.stdout
    assert len(finished(out)) == wanted
    assert not (out / ".partial").exists()
