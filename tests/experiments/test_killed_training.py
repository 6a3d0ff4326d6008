"""kill -9 at twenty moments of one training: it ends with the bits of one that was never disturbed."""

import random
import time

import numpy as np
import pytest

from tests.checkpoints import checkpoint_arrays, logged_lines
from tests.commands import run_command, start_command
from tests.vla_jax.evaluation.workspace import make_workspace
from vla_jax.policy.checkpoints import CHECKPOINTS, checkpoint_steps
from vla_jax.storage.checksums import find_changes

STEPS, CHECKPOINT_EVERY, LOG_EVERY = 210, 5, 3
NUM_KILLS, NUM_IN_SAVES = 20, 7
TIMEOUT_S = 300


def newest_step(run):
    return (
        max((line["step"] for line in logged_lines(run)), default=0)
        if (run / "metrics.jsonl").exists()
        else 0
    )


def identity(run):
    """Changes when a resumed process has put the log in order and goes on with it."""
    path = run / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else None


def unfinished(run):
    return list((run / CHECKPOINTS).glob("*.unfinished*"))


def wait_for(condition, process):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(tmp_path):
    """Between updates, inside saves and around the ends of epochs (every ten updates), each resumed from the last."""
    workspace = make_workspace(tmp_path)
    epoch = len(workspace.dataset.sample_ticks("train")) // 8
    rng = random.Random(0)
    # A moment is (logged step to wait for, whether to wait for a save to begin then, seconds to wait after that).
    at_steps = sorted(rng.sample(range(LOG_EVERY, STEPS - 12, LOG_EVERY), NUM_KILLS))
    assert any(step % epoch in (0, epoch - 1) for step in at_steps)
    in_saves = set(rng.sample(range(NUM_KILLS), NUM_IN_SAVES))
    moments = [
        (step, index in in_saves, rng.uniform(0, 0.02 if index in in_saves else 0.1))
        for index, step in enumerate(at_steps)
    ]

    def arguments(run):
        return (
            "train", workspace.data, "--cache", workspace.cache, "--out", run, "--recipe", "debug", "--resume",
            "--steps", STEPS, "--checkpoint-every", CHECKPOINT_EVERY, "--log-every", LOG_EVERY,
            "--validate-every", 35,
        )  # fmt: skip

    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    run_command(*arguments(undisturbed))
    killed_in_saves = 0
    for step, in_save, delay in moments:
        before = identity(disturbed)
        process = start_command(*arguments(disturbed))
        wait_for(lambda before=before: identity(disturbed) != before, process)
        wait_for(lambda step=step: newest_step(disturbed) >= step, process)
        if in_save:
            wait_for(lambda: unfinished(disturbed), process)
        time.sleep(delay)
        process.kill()
        process.communicate(timeout=TIMEOUT_S)
        killed_in_saves += bool(unfinished(disturbed))
        for kept in checkpoint_steps(disturbed):
            assert find_changes(disturbed / CHECKPOINTS / str(kept)) == []
    assert killed_in_saves
    run_command(*arguments(disturbed))
    assert not unfinished(disturbed)
    expected, result = checkpoint_arrays(undisturbed, STEPS), checkpoint_arrays(disturbed, STEPS)
    assert expected.keys() == result.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(result[name], value, err_msg=name)
    assert logged_lines(disturbed) == logged_lines(undisturbed)
