"""Where arrays live: the device mesh, its axis names, and the rule that places parameters and batches.

Everything else asks this module; models never name devices. Batches are split over both axes; parameters,
optimizer state and EMA weights are split over `fsdp` (fully sharded data parallelism, Zhao et al. 2023) and
repeated over `data`.
"""

import logging
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vla_jax.contracts.observation import Batch
from vla_jax.errors import UserError

logger = logging.getLogger(__name__)

DATA_AXIS, FSDP_AXIS = "data", "fsdp"
BATCH_SPEC = PartitionSpec((DATA_AXIS, FSDP_AXIS))
# Splitting a small array costs more in latency than it saves in memory.
MIN_SHARDED_ELEMENTS = 2**14


def make_mesh(num_devices: int | None = None, fsdp: int = 1) -> Mesh:
    """Returns a (data, fsdp) mesh over the first `num_devices` devices (all by default).

    Raises:
        UserError: more devices asked for than there are, or `fsdp` does not divide them.
    """
    # Each process's devices side by side: its rows of a batch are one run of rows.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    num_devices = len(devices) if num_devices is None else num_devices
    if not 1 <= num_devices <= len(devices):
        raise UserError(
            f"--devices {num_devices}: this machine has {len(devices)} {devices[0].platform} device(s); "
            f"ask for 1 to {len(devices)}"
        )
    if num_devices < len(devices) and jax.process_count() > 1:
        raise UserError(f"--devices {num_devices}: several processes use all of their {len(devices)} devices")
    if fsdp < 1 or num_devices % fsdp:
        raise UserError(f"--fsdp {fsdp} does not divide the {num_devices} devices in use")
    return Mesh(
        np.reshape(devices[:num_devices], (num_devices // fsdp, fsdp)),
        (DATA_AXIS, FSDP_AXIS),
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def parameter_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Returns how an array of a parameter's shape is split: its longest axis that `fsdp` divides, if it is large."""
    if fsdp == 1 or int(np.prod(shape)) < MIN_SHARDED_ELEMENTS:
        return PartitionSpec()
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if not divisible:
        return PartitionSpec()
    longest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*(FSDP_AXIS if axis == longest else None for axis in range(len(shape))))


def state_sharding(mesh: Mesh, abstract_state: Any) -> Any:
    """Returns a `NamedSharding` for every leaf of a training state (parameters, optimizer, EMA alike)."""
    fsdp = mesh.shape[FSDP_AXIS]
    sharding = jax.tree.map(
        lambda leaf: NamedSharding(mesh, parameter_spec(leaf.shape, fsdp)), abstract_state
    )
    if fsdp > 1:
        total = sum(_bytes(leaf) for leaf in jax.tree.leaves(abstract_state))
        local = sum(
            _bytes(leaf) / (fsdp if placement.spec else 1)
            for leaf, placement in zip(
                jax.tree.leaves(abstract_state), jax.tree.leaves(sharding), strict=True
            )
        )
        logger.info("state: %.1f MB, %.1f MB on each device (fsdp %d)", total / 1e6, local / 1e6, fsdp)
    return sharding


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the placement of a batch's leading axis."""
    return NamedSharding(mesh, BATCH_SPEC)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the placement of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(mesh: Mesh, batch: Batch) -> Batch:
    """Starts the transfer of this process's rows of a batch to its devices."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda value: jax.make_array_from_process_local_data(sharding, np.asarray(value)), batch
    )


def _bytes(leaf: Any) -> int:
    return int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
