"""Batching without waiting: what is asked for while a batch is computed makes the next one."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from vla_jax.errors import UserError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Computed(Generic[ResultT]):
    """A result, and how it came about."""

    value: ResultT
    waited_s: float
    """Until its batch was begun."""
    took_s: float
    """For the batch, measured when its results were there."""
    batch_size: int
    """Items in the batch."""


@dataclass(frozen=True)
class _Job(Generic[ItemT, ResultT]):
    item: ItemT
    asked_at: float
    answer: "asyncio.Future[Computed[ResultT]]"


class Batcher(Generic[ItemT, ResultT]):
    """Computes in one thread, so that the event loop goes on; belongs to the loop that first submits.

    An item that comes while nothing is computed is begun at once. Others wait in the order in which they came, at
    most one for each caller that awaits its own.
    """

    def __init__(
        self, compute: Callable[[Sequence[ItemT]], Sequence[ResultT]], max_batch: int, *, name: str
    ) -> None:
        """compute: results of 1 to `max_batch` items, in their order. Where it raises ValueError or UserError for
        several items, each is computed by itself, so that only those are refused that are at fault. name: of the
        thread.
        """
        self._compute = compute
        self._max_batch = max_batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: deque[_Job[ItemT, ResultT]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def submit(self, item: ItemT) -> Computed[ResultT]:
        """Returns the item's result; raises what computing it raises."""
        loop = asyncio.get_running_loop()
        job: _Job[ItemT, ResultT] = _Job(item, time.perf_counter(), loop.create_future())
        self._waiting.append(job)
        if self._running is None:
            self._running = loop.create_task(self._run(loop))
        return await job.answer

    def close(self) -> None:
        """Waits for the batch that is being computed, and ends the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            # Who has gone in the meantime needs no answer.
            count = min(len(self._waiting), self._max_batch)
            batch = [job for job in (self._waiting.popleft() for _ in range(count)) if not job.answer.done()]
            if batch:
                begun = time.perf_counter()
                results = await loop.run_in_executor(self._thread, self._each, [job.item for job in batch])
                took = time.perf_counter() - begun
                for job, result in zip(batch, results, strict=True):
                    _give(job, result, begun, took, len(batch))
        self._running = None

    def _each(self, items: Sequence[ItemT]) -> list[ResultT | Exception]:
        """Returns a result or an exception for each item; never raises, so that nobody waits for ever."""
        try:
            return list(self._compute(items))
        except (ValueError, UserError) as error:
            return [error] if len(items) == 1 else [self._each([item])[0] for item in items]
        except Exception as error:
            return [error] * len(items)


def _give(
    job: _Job[ItemT, ResultT], result: ResultT | Exception, begun: float, took: float, size: int
) -> None:
    if job.answer.done():
        return
    if isinstance(result, Exception):
        job.answer.set_exception(result)
    else:
        job.answer.set_result(Computed(result, begun - job.asked_at, took, size))
