"""`prepare` killed without warning: the next run completes, and the result is what an undisturbed run gives."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.vla_jax.recordings.recorded_episodes import write_data_set
from vla_jax.dataset.packed_dataset import PackedDataset


def command(source, out, workers):
    return [
        sys.executable,
        "-m",
        "experiments.prepare",
        str(source),
        "--out",
        str(out),
        "--workers",
        str(workers),
    ]


def start(source, out, workers):
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command(source, out, workers), start_new_session=True, **silent)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("workers", "kills"), [(1, 2), (2, 1), pytest.param(2, 20, marks=pytest.mark.slow)], ids=str
)
def test_killed_at_random_moments(workers, kills, tmp_path):
    source = write_data_set(tmp_path / "source", 8, seconds=3.0)
    out = tmp_path / "data"
    began = time.monotonic()
    subprocess.run(command(source, out, workers), check=True, capture_output=True)
    seconds = time.monotonic() - began
    expected = tree(out)
    shutil.rmtree(out)
    moments = random.Random(kills)
    for kill in range(kills):
        process = subprocess.Popen(
            command(source, out, workers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(moments.uniform(0.3, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if kill % 4 == 3:
            subprocess.run(command(source, out, workers), check=True, capture_output=True)
            assert tree(out) == expected
            shutil.rmtree(out)
    subprocess.run(command(source, out, workers), check=True, capture_output=True)
    assert tree(out) == expected
    assert len(PackedDataset.open(out).episodes) == 8


def test_processes_that_read_episodes_end_with_a_killed_run(tmp_path):
    source = write_data_set(tmp_path / "source", 12, seconds=3.0)
    process = subprocess.Popen(
        command(source, tmp_path / "data", 2),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not list((tmp_path / "data").glob(".building/*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    group = os.getpgid(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("processes of a killed run live on")
