"""What a run needs of memory, compared with what there is before anything is allocated."""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vla_jax.dataset.batches import make_batch
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.training.config import TrainConfig
from vla_jax.training.sharding import Mesh
from vla_jax.training.state import TrainState

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def refuse_beyond_memory(
    config: TrainConfig, dataset: PackedDataset, features: FeatureTable, abstract: TrainState, mesh: Mesh
) -> None:
    """Refuses a network or a batch that cannot be held. abstract: shapes of the training state on the mesh.

    Raises:
        UserError: says what it would need, and what there is.
    """
    held = sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=object)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )
    _compare(
        held, device_memory(mesh), "the network with its average and optimizer", "make its sizes smaller"
    )
    ticks = features.sample_ticks("train")
    if len(ticks):
        sample = sum(leaf.nbytes for leaf in jax.tree.leaves(make_batch(dataset, features, ticks[:1])))
        needs = sample * config.batch_size // jax.process_count()
        _compare(
            needs, host_memory(), f"a batch of {config.batch_size} samples", "give a smaller --batch-size"
        )


def refuse_update_beyond_memory(peak: int | None, mesh: Mesh) -> None:
    """Refuses an update that needs more on a device than it has. peak: bytes, as the compiler says.

    Raises:
        UserError: says what it would need, and what there is.
    """
    if peak is not None:
        advice = "give a smaller --batch-size, or more --grad-accum-steps or --remat"
        _compare(peak, device_memory(mesh), "an update", advice)


def host_memory() -> int | None:
    """Returns the bytes of memory that this process may have at most; None where the system does not say."""
    found = []
    with contextlib.suppress(ValueError, OSError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in _LIMITS:
        with contextlib.suppress(ValueError, OSError):
            found.append(int(Path(file).read_text()))
    return min(found, default=None)


def device_memory(mesh: Mesh) -> int | None:
    """Returns the bytes of memory of this process's devices, of the smallest of them; a CPU has the host's."""
    stats: list[dict[str, Any] | None] = [device.memory_stats() for device in mesh.local_devices]
    limits = [entry["bytes_limit"] for entry in stats if entry and "bytes_limit" in entry]
    if not limits and mesh.local_devices[0].platform == "cpu":
        return host_memory()
    return min(limits, default=None)


def _compare(needs: int, there_is: int | None, what: str, advice: str) -> None:
    if there_is is not None and needs > there_is:
        raise UserError(f"{what} needs {_size(needs)} of memory, and there are {_size(there_is)}; {advice}")


def _size(count: int) -> str:
    return f"{count / 1e12:.3g} TB" if count >= 1e12 else f"{count / 1e9:.3g} GB"
