import json
import subprocess
import sys

from vla_jax.training.metric_writer import MetricWriter


def read(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_lines_carry_their_step_and_no_nan(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"train/loss": 0.5})
        writer.write(2, {"train/loss": float("nan")})
    assert read(tmp_path) == [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": None}]
    assert list((tmp_path / "tensorboard").iterdir())


def test_resuming_takes_out_what_comes_again(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in range(1, 6):
            writer.write(step, {"train/loss": step / 10})
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 6, "train/lo')  # Killed while it wrote.
    with MetricWriter(tmp_path, resume_step=3) as writer:
        writer.write(4, {"train/loss": 9.0})
    assert [(line["step"], line["train/loss"]) for line in read(tmp_path)] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
        (4, 9.0),
    ]


def test_torch_is_not_imported_for_it_and_can_be_later(tmp_path):
    program = """
import sys
from pathlib import Path
from vla_jax.training.metric_writer import MetricWriter
MetricWriter(Path(sys.argv[1])).close()
assert "torch" not in sys.modules
import torch
MetricWriter(Path(sys.argv[1])).close()
assert sys.modules["torch"] is torch
"""
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True, timeout=120)
