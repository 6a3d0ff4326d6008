"""Processes that take a share of the work and never outlive the one that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from vla_jax.errors import UserError

ResultT = TypeVar("ResultT")


def run_jobs(
    function: Callable[..., ResultT], jobs: Sequence[tuple[Any, ...]], num_workers: int, *, killed: str
) -> Iterator[ResultT]:
    """Yields function(*job) of each job as it is done, in no particular order.

    num_workers: processes; 1 does the work in this one. A caller that stops early waits for the jobs in hand only.
    killed: what to say when a worker dies.

    Raises:
        UserError: a worker was killed.
    """
    num_workers = min(num_workers, len(jobs))
    if num_workers <= 1:
        for job in jobs:
            yield function(*job)
        return
    # Fresh processes: a fork would copy the threads' locks of whatever library is loaded here.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, begin_worker) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(killed) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def begin_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends with it when it is killed, as a pool's workers do not by themselves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has one"

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
