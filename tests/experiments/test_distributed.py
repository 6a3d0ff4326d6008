"""Two processes on this machine train one policy together, as two hosts would."""

import json
import os
import signal
import socket
import time

import numpy as np
import pytest

from tests.commands import error_line, run_command, start_command
from tests.vla_jax.evaluation.workspace import make_workspace
from vla_jax.policy.artifact import load_policy
from vla_jax.policy.checkpoints import checkpoint_steps

pytestmark = pytest.mark.slow

# Networks whose attention heads divide the width of these features.
OPTIONS = ("--recipe", "small", "--batch-size", "8", "--log-every", "1", "--validate-every", "4")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("distributed"))


def start_pair(workspace, run, *options):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [
        start_command(
            "train", workspace.data, "--cache", workspace.cache, "--out", run, *OPTIONS, *options,
            "--distributed", "--coordinator", f"localhost:{port}", "--num-processes", 2, "--process-id", index,
        )
        for index in range(2)
    ]  # fmt: skip


def finish(processes, status=0):
    outputs = [process.communicate(timeout=550) for process in processes]
    for process, (output, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == status, f"{output}\n{errors}"
    return outputs


def logged(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        (line["step"], name): value
        for line in lines
        for name, value in line.items()
        if name in ("train/loss", "validation/action_mse")
    }


def test_two_processes_train_and_resume_as_one_would(workspace, tmp_path):
    single = tmp_path / "single"
    run_command("train", workspace.data, "--cache", workspace.cache, "--out", single, *OPTIONS, "--steps", 8)
    together = tmp_path / "together"
    processes = start_pair(workspace, together, "--steps", "8", "--checkpoint-every", "2")
    deadline = time.monotonic() + 300
    while not checkpoint_steps(together):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.communicate()
    resumed = start_pair(workspace, together, "--steps", "8", "--checkpoint-every", "2", "--resume")
    (shown, said), (shown_by_other, _) = finish(resumed)
    assert "2 cpu in 2 processes" in said
    assert "trained 8 updates" in shown
    assert "trained" not in shown_by_other  # Only process 0 speaks.
    expected, found = logged(single), logged(together)
    assert found.keys() == expected.keys()
    for at, value in expected.items():
        assert found[at] == pytest.approx(value, rel=1e-5), at
    # One process reads what two wrote.
    assert load_policy(together).step == load_policy(single).step == 8
    for name, value in load_policy(single).normaliser.__dict__.items():
        np.testing.assert_array_equal(load_policy(together).normaliser.__dict__[name], value)


def test_sigterm_to_one_process_stops_both_after_the_same_update(workspace, tmp_path):
    processes = start_pair(workspace, tmp_path, "--steps", "100000", "--feed", "device")
    deadline = time.monotonic() + 300
    while not (tmp_path / "metrics.jsonl").exists() or not logged(tmp_path):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    os.kill(processes[1].pid, signal.SIGTERM)
    (output, _), _ = finish(processes)
    assert "--resume" in output
    assert len(checkpoint_steps(tmp_path)) >= 1


def test_a_process_that_cannot_join_says_so(workspace, tmp_path):
    done = run_command(
        "train", workspace.data, "--cache", workspace.cache, "--out", tmp_path, *OPTIONS, "--distributed", status=2
    )  # fmt: skip
    assert "--coordinator" in error_line(done)
