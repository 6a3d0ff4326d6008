"""Shares of work in other processes, and what becomes of these."""

import os
import signal
import time

import pytest

from tests.vla_jax.storage.processes import is_running, kill, start_python, wait_for
from vla_jax.errors import UserError
from vla_jax.storage.worker_processes import run_jobs

# Prints its workers' process numbers, then waits for ever.
WAIT = """
import os, sys, time
from pathlib import Path
from tests.vla_jax.storage.test_worker_processes import note_and_wait
from vla_jax.storage.worker_processes import run_jobs
if __name__ == "__main__":
    for _ in run_jobs(note_and_wait, [(sys.argv[1], i) for i in range(2)], 2, killed="killed"):
        pass
"""


def note_and_wait(folder, number):
    with open(f"{folder}/{os.getpid()}", "w") as file:
        file.write("here")
    time.sleep(600)


def add(a, b):
    return a + b, os.getpid()


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number):
    raise OSError(f"job {number}")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_job_is_done_once(num_workers):
    results = list(run_jobs(add, [(i, 10) for i in range(7)], num_workers, killed="killed"))
    assert sorted(total for total, _ in results) == list(range(10, 17))
    assert ({process for _, process in results} == {os.getpid()}) == (num_workers == 1)


def test_no_jobs_are_no_work():
    assert list(run_jobs(add, [], 4, killed="killed")) == []


def test_a_killed_worker_is_told_in_the_callers_words():
    with pytest.raises(UserError, match=r"^give it more memory$"):
        list(run_jobs(die, [(0,), (1,)], 2, killed="give it more memory"))


def test_a_jobs_error_is_the_callers():
    with pytest.raises(OSError, match=r"job"):
        list(run_jobs(fail, [(0,), (1,)], 2, killed="killed"))


def test_workers_end_with_a_killed_parent(tmp_path):
    process = start_python(WAIT, tmp_path)
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2, process)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert all(is_running(number) for number in workers)
    kill(process)
    deadline = time.monotonic() + 20
    while any(is_running(number) for number in workers):
        assert time.monotonic() < deadline, "workers live on"
        time.sleep(0.02)
