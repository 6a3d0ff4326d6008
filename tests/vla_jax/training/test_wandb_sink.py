"""Weights & Biases without network: in a process of its own, as it starts one for itself."""

import json
import os
import subprocess
import sys

import pytest

from vla_jax.errors import UserError
from vla_jax.training.wandb_sink import RUN_ID_FILE, require_wandb

SCRIPT = """
import sys
from pathlib import Path
from tests.vla_jax.training import synthetic
from vla_jax.errors import UserError
from vla_jax.training.metric_writer import MetricWriter

run, first = Path(sys.argv[1]), int(sys.argv[2])
try:
    with MetricWriter(run, resume_step=first, wandb=synthetic.config()) as writer:
        for step in range(first + 1, first + 4):
            writer.write(step, {"train/loss": 1 / step})
except UserError as error:
    sys.exit(f"error: {error}")
"""


def write(run, first, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(run), str(first)],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_a_resumed_run_goes_on_under_the_same_id_offline(tmp_path):
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    run.mkdir()
    for first in (0, 2):
        done = write(run, first, WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr
    run_id = (run / RUN_ID_FILE).read_text().strip()
    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert [folder.name.rsplit("-", 1)[1] for folder in folders] == [run_id] * len(folders)
    kept = b"".join(path.read_bytes() for path in run.glob("wandb/offline-run-*/*.wandb"))
    for step in range(1, 6):
        assert repr(1 / step).encode() in kept
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [
        1, 2, 3, 4, 5,
    ]  # fmt: skip


def test_not_being_logged_in_is_said(tmp_path):
    pytest.importorskip("wandb")
    done = write(tmp_path, 0, WANDB_BASE_URL="http://localhost:9", HOME=str(tmp_path), NETRC=str(tmp_path))
    assert done.returncode == 1
    assert "WANDB_MODE=offline" in done.stderr.splitlines()[-1]


def test_a_missing_package_is_said_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'vla-jax\[wandb\]'"):
        require_wandb()
