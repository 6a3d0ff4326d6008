"""The cases of the serving benchmark: a policy on disk, its server as a process, and clients that ask without pause."""

import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.benchmarks.networks import HeadKind, Inputs, Size, make_inputs, policy_config
from experiments.benchmarks.timing import Timing, in_turn
from vla_jax.client import PolicyClient
from vla_jax.contracts.specs import LAB_ACTIONS, DataSpec, FeatureSpec, SensorSpec
from vla_jax.policy.artifact import save_policy
from vla_jax.policy.config import PolicyConfig
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.policy.metadata import PolicyMetadata
from vla_jax.policy.network import PolicyNetwork, abstract_network
from vla_jax.preprocessing.config import NormalisationConfig
from vla_jax.preprocessing.normaliser import Normaliser

DDIM_STEPS = 10
SAMPLING: dict[HeadKind, dict[str, Any]] = {
    "regression": {},
    "diffusion": {"sampler": "ddim", "steps": DDIM_STEPS},
}
WEIGHTS_SPREAD = 0.02
# A served row may be in a larger batch, whose sums are in another order.
AGREEMENT = 1e-3
TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class LatencyTiming(Timing):
    """p50_ms, p99_ms: from a request to its actions, over all rounds. mean_batch: requests computed together."""

    p50_ms: float
    p99_ms: float
    mean_batch: float


@dataclass(frozen=True)
class _Round:
    """seconds: from the first request to the last reply. latencies: of each request, seconds. batches: of each."""

    seconds: float
    latencies: Sequence[float]
    batches: Sequence[float]


def write_policy(run: Path, head: HeadKind, sensor_length: int, size: Size) -> Path:
    """Writes a policy of random weights for the lab's arm as a run, and returns its path."""
    config = policy_config(head, sensor_length, size)
    data = DataSpec(LAB_ACTIONS, views=None, sensor=SensorSpec(config.sensor.channels, sensor_length))
    metadata = PolicyMetadata(
        network=config,
        data=data,
        features=FeatureSpec(config.vl_slots, config.vl_dim),
        normalisation=NormalisationConfig(),
    )
    save_policy(run, _random_network(config), _identity(config), metadata)
    return run


def measure(
    case: HeadKind, run: Path, *, clients: Sequence[int], requests: int, rounds: int, max_batch: int
) -> list[LatencyTiming]:
    """Times direct calls and each number of clients, a round of each in turn.

    Raises:
        RuntimeError: what is served is not what the policy predicts.
    """
    policy = InsertionPolicy.from_checkpoint(run, **SAMPLING[case])
    inputs = make_inputs(policy.config, 1, policy.sensor_window or 1)
    policy.warm_up()
    with contextlib.ExitStack() as open_ones:
        port = open_ones.enter_context(_server(run, case, max_batch))
        connected = [
            open_ones.enter_context(PolicyClient(port=port, timeout_s=TIMEOUT_S)) for _ in range(max(clients))
        ]
        _check_agreement(policy, connected[0], inputs)
        sides: dict[str, Callable[[], _Round]] = {"direct": lambda: _direct(policy, inputs, requests)}
        for count in clients:
            some = connected[:count]
            name = f"{count} client{'s' if count > 1 else ''}"
            sides[name] = lambda some=some: _ask_together(some, inputs, requests)
        results = in_turn(sides, rounds)
    return [_timing(case, side, done) for side, done in results.items()]


def _timing(case: str, side: str, rounds: Sequence[_Round]) -> LatencyTiming:
    latencies = np.concatenate([done.latencies for done in rounds])
    p50, p99 = np.percentile(1e3 * latencies, (50, 99))
    return LatencyTiming(
        case=case,
        side=side,
        seconds=tuple(done.seconds for done in rounds),
        amount=len(rounds[0].latencies),
        unit="requests",
        p50_ms=float(p50),
        p99_ms=float(p99),
        mean_batch=float(np.mean([done.batches for done in rounds])),
    )


def _direct(policy: InsertionPolicy, inputs: Inputs, requests: int) -> _Round:
    has_sensor, mask = np.ones(1, bool), np.ones(inputs.vl.shape[:2], bool)
    latencies, begun = [], time.perf_counter()
    for _ in range(requests):
        asked = time.perf_counter()
        policy.predict(inputs.vl, mask, inputs.sensor, has_sensor)
        latencies.append(time.perf_counter() - asked)
    return _Round(time.perf_counter() - begun, latencies, [1.0] * requests)


def _ask_together(clients: Sequence[PolicyClient], inputs: Inputs, requests: int) -> _Round:
    """Lets each client ask in a thread of its own."""
    observation = {"vl": inputs.vl[0], "sensor": inputs.sensor[0]}
    latencies: list[float] = []
    batches: list[float] = []
    faults: list[Exception] = []

    def ask(client: PolicyClient) -> None:
        try:
            for _ in range(requests):
                asked = time.perf_counter()
                reply = client.infer(observation)
                latencies.append(time.perf_counter() - asked)
                batches.append(reply["policy_timing"]["batch_size"])
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    if faults:
        raise faults[0]
    return _Round(seconds, latencies, batches)


def _check_agreement(policy: InsertionPolicy, client: PolicyClient, inputs: Inputs) -> None:
    served = client.infer({"vl": inputs.vl[0], "sensor": inputs.sensor[0]})["actions"]
    mask = np.ones(inputs.vl.shape[:2], bool)
    direct = policy.predict(inputs.vl, mask, inputs.sensor, np.ones(1, bool))[0]
    difference = np.abs(served - direct).max() / np.abs(direct).max()
    if not difference < AGREEMENT:
        raise RuntimeError(
            f"what is served differs from direct calls by {difference:.2g} of the largest action"
        )


@contextlib.contextmanager
def _server(run: Path, case: HeadKind, max_batch: int) -> Iterator[int]:
    """Serves a run in a process of its own, and yields its port."""
    options = [f"--{name}={value}" for name, value in SAMPLING[case].items()]
    words = [str(run), "--port", "0", "--max-batch", str(max_batch), *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.serve", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"serving at ws://\S+:(\d+)$", line):
                yield int(found[1])
                return
        raise RuntimeError(f"the server of {run} ended with status {process.wait()}")
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def _random_network(config: PolicyConfig) -> PolicyNetwork:
    """Returns a network whose weights NumPy draws, which compiles nothing."""
    structure, params, statistics = nnx.split(abstract_network(config), nnx.Param, ...)
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(WEIGHTS_SPREAD * rng.standard_normal(leaf.shape, np.float32), leaf.dtype)

    params = jax.tree.map(draw, params)
    statistics = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), statistics)
    return nnx.merge(structure, params, statistics)


def _identity(config: PolicyConfig) -> Normaliser:
    """Returns a normaliser that leaves everything as it is."""
    one = jnp.float32(1)
    return Normaliser(
        action_offset=jnp.zeros(config.action_dim),
        action_scale=jnp.ones(config.action_dim),
        force_offset=jnp.float32(0),
        force_scale=one,
        ascan_scale=one,
        feature_offset=jnp.zeros((1, config.vl_dim)),
        feature_scale=jnp.ones((1, config.vl_dim)),
    )
