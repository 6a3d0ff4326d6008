"""Packs episodes in several processes, which end with the one that started them."""

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from vla_jax.dataset.episode_packing import pack_episode
from vla_jax.errors import UserError
from vla_jax.progress import progress_bar
from vla_jax.recordings.findings import Finding


def pack_episodes(jobs: Sequence[tuple[Any, ...]], num_workers: int) -> list[Finding]:
    """Calls `pack_episode` with the arguments of each job and returns all findings.

    Raises:
        UserError: a process was killed.
    """
    findings: list[Finding] = []
    with progress_bar(total=len(jobs), desc="prepare", unit="episode", disable=not jobs) as bar:
        if num_workers == 1 or len(jobs) < 4:
            for job in jobs:
                findings += pack_episode(*job)
                bar.update()
            return findings
        # Fresh processes: a fork would copy the threads' locks of whatever library is loaded here.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            min(num_workers, len(jobs)), mp_context=context, initializer=_end_with_parent
        ) as pool:
            futures = [pool.submit(pack_episode, *job) for job in jobs]
            try:
                for future in as_completed(futures):
                    findings += future.result()
                    bar.update()
            except BrokenProcessPool as error:
                raise UserError(
                    "a process that reads episodes was killed, perhaps for want of memory; try --workers 1"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)
    return findings


def _end_with_parent() -> None:
    """Makes this process end when the one that started it is killed, which the pool does not do by itself."""

    def watch() -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
