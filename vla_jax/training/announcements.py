"""What a run says before its first update: where it computes, what it holds, what it will see."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from vla_jax.contracts.metric_names import CLOSED_LOOP, VALIDATION
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.storage.array_items import leaf_name
from vla_jax.training.config import TrainConfig
from vla_jax.training.sharding import Mesh
from vla_jax.training.state import TrainState

# Parameters that a CPU updates in some hundredths of a second.
MANY_FOR_A_CPU = 20_000_000


def describe_devices(mesh: Mesh) -> str:
    """Returns the mesh's devices and axes, for instance "8 NVIDIA H200, mesh data 4 × fsdp 2"."""
    kinds = Counter(device.device_kind for device in mesh.devices.flat)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    axes = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{listed}{processes}, mesh {axes}"


def describe_state(state: TrainState) -> str:
    """Returns parameter counts by part, and the bytes of the whole training state on each device."""
    parts: Counter[str] = Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        parts[leaf_name(path).split(".")[0]] += leaf.size
    listed = ", ".join(f"{name} {_count(count)}" for name, count in parts.items())
    leaves = jax.tree.leaves(state)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    return (
        f"{_count(sum(parts.values()))} parameters ({listed}); with average and optimizer {_megabytes(held)} "
        "on each device"
    )


def describe_slowness(state: TrainState, mesh: Mesh) -> Iterator[str]:
    """Yields what to know before a full-size network is trained on a CPU."""
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    if size > MANY_FOR_A_CPU and mesh.devices.flat[0].platform == "cpu":
        yield (
            "a network of this size is made for accelerators: on a CPU it takes hours to days; --recipe small trains "
            "in minutes"
        )


def describe_samples(config: TrainConfig, dataset: PackedDataset, features: FeatureTable) -> Iterator[str]:
    """Yields the samples of an epoch, and of each source."""
    ticks = features.sample_ticks("train")
    if config.batch_size > len(ticks):
        yield f"a batch of {config.batch_size} is larger than the {len(ticks)} training samples: it holds copies"
    yield (
        f"{len(ticks)} training and {len(features.sample_ticks('val'))} held-out samples; an epoch is "
        f"{len(ticks) / config.batch_size:.1f} updates of {config.batch_size}, the run {config.steps} updates"
    )
    if ages := config.feature_age:
        shown = f"{ages[0]:g}" if ages[0] == ages[-1] else f"{ages[0]:g} to {ages[-1]:g}"
        told = "" if config.policy.age else ", which the policy is not told"
        yield f"features are {shown} s old{told}"
    sources = np.array([entry.source for entry in dataset.episodes])[dataset.ticks.episode[ticks]]
    with_sensor = dataset.has_sensor(ticks)
    if config.policy.uses_sensor and not with_sensor.any():
        yield (
            "no training sample has a sensor: the policy's sensor encoder learns nothing; --no-sensor trains one "
            "without"
        )
    for source in sorted(set(sources)):
        mine = sources == source
        yield f"  {source}: {mine.sum()} training samples, {(mine & with_sensor).sum()} with sensor"


def peak_memory(compiled: Any) -> int | None:
    """Returns the bytes that a compiled function needs at its peak on each device, as the compiler says."""
    needs = compiled.memory_analysis()
    if needs is None:
        return None
    return (
        needs.argument_size_in_bytes
        + needs.output_size_in_bytes
        - needs.alias_size_in_bytes
        + needs.temp_size_in_bytes
    )


def describe_memory(compiled: Any) -> str:
    """Returns what the compiled update needs at its peak on each device."""
    needs, peak = compiled.memory_analysis(), peak_memory(compiled)
    if peak is None:
        return "its peak memory is not known on this device"
    return (
        f"it needs {_megabytes(peak)} on each device, {_megabytes(needs.temp_size_in_bytes)} of it temporary"
    )


def describe_metrics(metrics: Mapping[str, float]) -> str:
    """Returns the held-out errors of the weights that evaluation uses."""
    listed = [
        f"{name.removeprefix(f'{VALIDATION}/')} {value:.5f}"
        for name, value in metrics.items()
        if name.startswith(f"{VALIDATION}/")
    ]
    return f"held-out {', '.join(listed)}" if listed else "there are no held-out episodes"


def describe_closed_loop(judged: Mapping[str, float]) -> str:
    """Returns what roll-outs found."""
    listed = [f"{name.removeprefix(f'{CLOSED_LOOP}/')} {value:.4g}" for name, value in judged.items()]
    return f"closed loop {', '.join(listed)}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"
