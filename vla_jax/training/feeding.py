"""How a batch reaches the devices: sent whole from the host, or gathered from a data set that lives on the devices.

`host`: threads make each batch from the memory maps, and it is sent one step ahead of the computation.
`device`: the sensor stream and the features live in device memory, whole on each device or, if they are too large
for that, split by rows over all of them; the host sends row numbers, and windows are gathered inside the jitted step.
`auto`: on accelerators as much as fits lives there (both, or one of the two); on a CPU there is nothing to gain.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vla_jax.contracts.observation import Batch, ResidentRows
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.timing import window_rows
from vla_jax.training.config import FeedMode
from vla_jax.training.sharding import BATCH_SPEC, Mesh, put_batch, replicated

logger = logging.getLogger(__name__)

# What stays free of a device's free memory, for activations and for what comes and goes.
RESIDENT_SHARE = 0.5
# Rows of a feature table that are read at once while it is sent to the devices.
READ_ROWS = 4096


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ResidentArrays:
    """What lives on the devices; None: sent with each batch.

    sensor: (R, C) the data set's stream. vl: (N, S, V) and vl_mask: (N, S), the features of each record.
    Split over the devices, the first axis is filled up with zeros to a multiple of their number.
    """

    sensor: jax.Array | None = None
    vl: jax.Array | None = None
    vl_mask: jax.Array | None = None

    @property
    def names(self) -> frozenset[str]:
        """What batches leave to the devices (see `vla_jax.dataset.batches.make_batch`)."""
        return frozenset(name for name in ("sensor", "vl") if getattr(self, name) is not None)


@dataclass(frozen=True)
class Feed:
    """How a training run gets its batches. Build it with `make_feed`.

    resident: arguments of the jitted step, so that XLA neither copies nor constant-folds them.
    split: names of the resident entries that are split over the devices.
    window: sensor rows of a sample.
    """

    mesh: Mesh
    window: int
    resident: ResidentArrays = field(default_factory=ResidentArrays)
    split: frozenset[str] = frozenset()

    def complete(self, resident: ResidentArrays, batch: Batch) -> Batch:
        """Puts into a batch what lives on the devices; traceable, and the same bits as the host's."""
        observation, rows = batch.observation, batch.resident
        if rows.sensor is not None:
            assert resident.sensor is not None
            begin, end = jnp.asarray(rows.sensor).T
            # Rows of −1 or beyond the end give zeros: samples without sensor.
            window = window_rows(begin, end, self.window, library=jnp)
            sensor = self._take("sensor", resident.sensor, window)
            observation = observation.replace(sensor=sensor)
        if rows.vl is not None:
            assert resident.vl is not None
            assert resident.vl_mask is not None
            records = jnp.asarray(rows.vl)
            observation = observation.replace(
                vl=self._take("vl", resident.vl, records),
                vl_mask=self._take("vl", resident.vl_mask, records),
            )
        return batch.replace(observation=observation, resident=ResidentRows())

    def describe(self) -> str:
        """Returns one line for people."""
        if not self.resident.names:
            return "batches are made on the host"
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(self.resident))
        names = {"sensor": "the sensor stream", "vl": "the features"}
        listed = " and ".join(names[name] for name in sorted(self.resident.names))
        placed = "split over the devices" if self.split else "whole on each device"
        return f"{listed} on the devices, {held / 1e6:.0f} MB each, {placed}"

    def _take(self, name: str, table: jax.Array, rows: jax.Array) -> jax.Array:
        if name not in self.split:
            return _take(table, rows)
        axes = BATCH_SPEC[0]

        def take_local(part: jax.Array, rows: jax.Array) -> jax.Array:
            """Each device looks up everyone's rows in its part; the sum, of which it keeps its own rows, is exact."""
            everyones = jax.lax.all_gather(rows, axes, tiled=True)
            first = jax.lax.axis_index(axes) * part.shape[0]
            mine = (everyones >= first) & (everyones < first + part.shape[0])
            found = _take(_as_integers(part), jnp.where(mine, everyones - first, -1))
            return jax.lax.psum_scatter(found, axes, tiled=True)

        spread = jax.shard_map(
            take_local, mesh=self.mesh, in_specs=(BATCH_SPEC, BATCH_SPEC), out_specs=BATCH_SPEC
        )
        taken = spread(table, rows)
        return taken != 0 if table.dtype == bool else jax.lax.bitcast_convert_type(taken, table.dtype)


def make_feed(
    mode: FeedMode,
    dataset: PackedDataset,
    features: FeatureTable,
    mesh: Mesh,
    *,
    free_bytes: int | None = None,
) -> Feed:
    """Puts on the devices what `mode` asks for or, with "auto", what fits.

    free_bytes: of each device; None: as the device says, with the training state already on it.

    Raises:
        UserError: "device" was asked for, and it does not fit even when it is split over all devices.
    """
    feed = Feed(mesh, dataset.meta.sensor_window_size)
    if mode == "host":
        return feed
    free = _free_bytes(mesh) if free_bytes is None else free_bytes
    if free is None and mode == "auto":
        return feed
    sizes = {"sensor": dataset.sensor.nbytes, "vl": _table_bytes(features)}
    if dataset.spec.sensor is None:
        del sizes["sensor"]
    placed = _place(sizes, mesh.size, free)
    if mode == "device" and placed.keys() != sizes.keys():
        assert free is not None, "without a limit everything fits"
        raise UserError(
            f"--feed device: the sensor stream ({dataset.sensor.nbytes / 1e9:.1f} GB) and the features "
            f"({_table_bytes(features) / 1e9:.1f} GB) do not fit on {mesh.size} device(s) with "
            f"{free / 1e9:.1f} GB free each; leave --feed out, or use more devices"
        )
    sharding = {
        name: NamedSharding(mesh, BATCH_SPEC) if is_split else replicated(mesh)
        for name, is_split in placed.items()
    }
    arrays: dict[str, jax.Array] = {}
    if "sensor" in placed:
        stream = dataset.sensor
        arrays["sensor"] = _put(
            lambda rows: stream[rows.start : rows.stop], stream.shape, stream.dtype, sharding["sensor"]
        )
    if "vl" in placed:
        shape = (len(features.records), features.num_slots, features.width)
        for index, (name, dtype) in enumerate((("vl", features.dtype), ("vl_mask", np.dtype(bool)))):
            arrays[name] = _put(
                lambda rows, index=index: _read_table(features, rows, index),
                shape[: 3 - index],
                dtype,
                sharding["vl"],
            )
    return Feed(
        mesh,
        dataset.meta.sensor_window_size,
        ResidentArrays(**arrays),
        frozenset(name for name, is_split in placed.items() if is_split),
    )


def prefetched(
    batches: Any, mesh: Mesh, first: int, last: int, waited: Callable[[float], None]
) -> Iterator[tuple[int, Batch, dict[str, Any]]]:
    """Yields (step, batch on the devices, data position after that batch), one transfer ahead of the computation.

    The position belongs to the batch given out, not to the one in flight: a run resumed there repeats nothing.
    waited: is told the seconds that each batch kept the loop waiting.
    """

    def fetch() -> tuple[Batch, dict[str, Any]]:
        started = time.perf_counter()
        batch = next(batches)
        position = batches.get_state()
        waited(time.perf_counter() - started)
        return put_batch(mesh, batch), position

    ahead = fetch() if first < last else None
    for step in range(first + 1, last + 1):
        assert ahead is not None
        batch, position = ahead
        if step < last:
            ahead = fetch()
        yield step, batch, position


def _take(table: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns table[rows], zeros for rows that are not in the table."""
    # Negative numbers would count from the end.
    return table.at[jnp.where(rows < 0, table.shape[0], rows)].get(mode="fill", fill_value=0)


def _as_integers(table: jax.Array) -> jax.Array:
    """Returns the same bits as unsigned integers, whose sum with zeros is exact (−0 and NaN too)."""
    if table.dtype == bool:
        return table.astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(table, jnp.dtype(f"uint{8 * table.dtype.itemsize}"))


def _place(sizes: Mapping[str, int], num_devices: int, free: int | None) -> dict[str, bool]:
    """Chooses what lives on the devices: name → whether it is split over them. free: bytes of each; None: no limit."""
    placed: dict[str, bool] = {}
    left = float("inf") if free is None else RESIDENT_SHARE * free
    for name, size in sizes.items():
        part = -(-size // num_devices)
        if size <= left or part <= left:
            placed[name] = size > left
            left -= part if placed[name] else size
    return placed


def _free_bytes(mesh: Mesh) -> int | None:
    """Returns what is free on the fullest of this process's devices; None where devices do not say (CPU)."""
    statistics = [device.memory_stats() for device in mesh.local_devices]
    if not all(statistics):
        return None
    return min(entry["bytes_limit"] - entry["bytes_in_use"] for entry in statistics)


def _table_bytes(features: FeatureTable) -> int:
    return len(features.records) * features.num_slots * (features.width * features.dtype.itemsize + 1)


def _read_table(features: FeatureTable, rows: slice, index: int) -> np.ndarray:
    records = features.records[rows]
    parts = [features.gather(records[i : i + READ_ROWS])[index] for i in range(0, len(records), READ_ROWS)]
    return np.concatenate(parts)


def _put(
    read: Callable[[slice], np.ndarray], shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding
) -> jax.Array:
    """Makes an array of this process's devices' rows, each row read where it is needed."""
    parts = 1 if sharding.spec == PartitionSpec() else sharding.mesh.size
    num_rows = -(-shape[0] // parts) * parts

    def block(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        first, stop, _ = index[0].indices(num_rows)
        if stop <= shape[0]:
            return read(slice(first, stop))
        filled = np.zeros((stop - first, *shape[1:]), dtype)
        if first < shape[0]:
            filled[: shape[0] - first] = read(slice(first, shape[0]))
        return filled

    return jax.make_array_from_callback((num_rows, *shape[1:]), sharding, block)
