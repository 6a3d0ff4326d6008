"""Time from an observation on the host to actions on the host."""

import time
from collections.abc import Callable

import numpy as np

from vla_jax.policy.insertion_policy import InsertionPolicy

PERCENTILES = (50, 90, 99)


def measure_latency(
    policy: InsertionPolicy,
    *,
    batch_size: int = 1,
    max_seconds: float = 3.0,
    min_calls: int = 10,
    max_calls: int = 200,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float | int]:
    """Returns percentiles, in milliseconds, of warm `infer` calls with observations in host memory.

    Keys: p50_ms, p90_ms, p99_ms, mean_ms, compile_ms (first call for the batch size, 0 when it was compiled
    before), calls, batch_size. Stops after `max_calls`, or after `max_seconds` and `min_calls`.
    """
    observation = policy.example(batch_size)
    started = clock()
    policy.infer(observation)
    first = clock() - started
    durations: list[float] = []
    while len(durations) < max_calls and (len(durations) < min_calls or sum(durations) < max_seconds):
        started = clock()
        policy.infer(observation)
        durations.append(clock() - started)
    milliseconds = 1e3 * np.asarray(durations)
    return {
        **{f"p{q}_ms": float(np.percentile(milliseconds, q)) for q in PERCENTILES},
        "mean_ms": float(milliseconds.mean()),
        "compile_ms": max(1e3 * first - float(np.median(milliseconds)), 0.0),
        "calls": len(durations),
        "batch_size": batch_size,
    }
