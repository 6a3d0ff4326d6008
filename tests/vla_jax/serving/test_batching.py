"""What comes while a batch is computed makes the next one; one at fault is refused alone."""

import asyncio
import threading

import pytest

from vla_jax.serving.batching import Batcher


class Gated:
    """Doubles numbers, one batch for each `release`; refuses negative ones."""

    def __init__(self):
        self.batches = []
        self._gate = threading.Semaphore(0)

    def release(self, count=100):
        self._gate.release(count)

    def __call__(self, items):
        self._gate.acquire()
        self.batches.append(list(items))
        if min(items) < 0:
            raise ValueError(f"negative: {items}")
        if 13 in items:
            raise KeyError("a fault of ours")
        return [2 * item for item in items]


def gather(compute, max_batch, *groups):
    """Submits the first group, waits until it is being computed, then the others, and lets all go."""

    async def run():
        batcher = Batcher(compute, max_batch, name="test")
        tasks = []
        for group in groups:
            tasks += [asyncio.create_task(batcher.submit(item)) for item in group]
            await asyncio.sleep(0.02)
        compute.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        batcher.close()
        return results

    return asyncio.run(run())


def test_who_waits_is_computed_together_in_order_and_within_the_limit():
    compute = Gated()
    results = gather(compute, 4, [1], [2, 3], [4, 5, 6])
    assert [result.value for result in results] == [2, 4, 6, 8, 10, 12]
    assert compute.batches == [[1], [2, 3, 4, 5], [6]]
    assert [result.batch_size for result in results] == [1, 4, 4, 4, 4, 1]
    assert results[0].waited_s < results[1].waited_s
    assert results[0].took_s >= 0.02


def test_only_who_is_at_fault_is_refused():
    results = gather(Gated(), 4, [1], [2, -3, 4])
    assert isinstance(results[2], ValueError)
    assert [results[i].value for i in (0, 1, 3)] == [2, 4, 8]


def test_a_fault_of_ours_reaches_all_of_its_batch_and_no_other():
    results = gather(Gated(), 2, [1], [13, 2, 3])
    assert [type(result) for result in results[1:3]] == [KeyError, KeyError]
    assert (results[0].value, results[3].value) == (2, 6)


def test_who_has_gone_is_not_computed():
    compute = Gated()

    async def run():
        batcher = Batcher(compute, 4, name="test")
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.02)
        second, third = (asyncio.create_task(batcher.submit(item)) for item in (2, 3))
        await asyncio.sleep(0.02)
        second.cancel()
        compute.release()
        assert ((await first).value, (await third).value) == (2, 6)
        with pytest.raises(asyncio.CancelledError):
            await second
        batcher.close()

    asyncio.run(run())
    assert compute.batches == [[1], [3]]


def test_it_goes_on_after_a_rest():
    compute = Gated()
    compute.release()

    async def run():
        batcher = Batcher(compute, 4, name="test")
        values = [(await batcher.submit(item)).value for item in (1, 2, 3)]
        batcher.close()
        return values

    assert asyncio.run(run()) == [2, 4, 6]
