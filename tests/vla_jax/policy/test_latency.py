import itertools

import pytest

from vla_jax.policy.latency import measure_latency


class CountingPolicy:
    def __init__(self):
        self.calls = 0

    def example(self, batch_size):
        return batch_size

    def infer(self, observation):
        self.calls += 1


def clock_of(durations):
    """A clock that is read before and after each call."""
    time = 0.0
    for duration in durations:
        yield time
        time += duration
        yield time


def test_percentiles_leave_the_first_call_out():
    policy = CountingPolicy()
    clock = clock_of([5.0, *(i / 1000 for i in range(1, 102))])
    latency = measure_latency(policy, max_calls=101, max_seconds=60.0, clock=lambda: next(clock))
    assert latency["calls"] == 101
    assert policy.calls == 102
    assert latency["p50_ms"] == pytest.approx(51)
    assert latency["p90_ms"] == pytest.approx(91)
    assert latency["p99_ms"] == pytest.approx(100)
    assert latency["mean_ms"] == pytest.approx(51)
    assert latency["compile_ms"] == pytest.approx(5000 - 51)


def test_slow_policies_stop_after_the_time_allowed_and_the_least_calls():
    clock = clock_of(itertools.repeat(1.0))
    latency = measure_latency(CountingPolicy(), max_seconds=3.0, min_calls=5, clock=lambda: next(clock))
    assert latency["calls"] == 5
    clock = clock_of(itertools.repeat(1.0))
    assert (
        measure_latency(CountingPolicy(), max_seconds=7.0, min_calls=5, clock=lambda: next(clock))["calls"]
        == 7
    )
