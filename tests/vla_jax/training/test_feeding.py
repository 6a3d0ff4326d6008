"""Batches completed on the devices are, bit for bit, those that the host makes."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.commands import run_on_eight_devices
from tests.vla_jax.evaluation.workspace import make_workspace
from vla_jax.dataset.batches import make_batch
from vla_jax.dataset.feature_table import FeatureTable
from vla_jax.errors import UserError
from vla_jax.storage.array_items import named_leaves
from vla_jax.training.feeding import RESIDENT_SHARE, _place, make_feed
from vla_jax.training.sharding import make_mesh, put_batch

SCRIPT = """
import sys
from tests.vla_jax.training import test_feeding
test_feeding.compare_on_eight_devices(sys.argv[1])
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Five episodes, one of them without sensor."""
    return make_workspace(tmp_path_factory.mktemp("feeding"))


def completed(feed, dataset, features, ticks):
    batch = make_batch(dataset, features, ticks, resident=feed.resident.names)
    assert all(getattr(batch.observation, name) is None for name in feed.resident.names)
    return jax.device_get(jax.jit(feed.complete)(feed.resident, put_batch(feed.mesh, batch)))


def assert_same_bits(found, dataset, features, ticks):
    found, expected = named_leaves(found), named_leaves(make_batch(dataset, features, ticks))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        if name != "tick":  # JAX holds it in 32 bits.
            assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_what_lives_on_the_devices_is_put_into_the_batch(workspace):
    dataset, features = workspace.dataset, workspace.features
    ticks = dataset.sample_ticks("all")
    assert not dataset.has_sensor(ticks).all()
    feed = make_feed("device", dataset, features, make_mesh(1))
    assert feed.resident.names == {"sensor", "vl"}
    assert "whole on each device" in feed.describe()
    assert_same_bits(completed(feed, dataset, features, ticks), dataset, features, ticks)


def test_windows_at_a_recording_s_start_repeat_its_first_row(workspace):
    dataset, size = workspace.dataset, 500
    ticks = dataset.sample_ticks("all")
    assert (np.ptp(dataset.sensor_rows(ticks), axis=1) < size).any()
    feed = dataclasses.replace(make_feed("device", dataset, workspace.features, make_mesh(1)), window=size)
    found = completed(feed, dataset, workspace.features, ticks).observation.sensor
    np.testing.assert_array_equal(found, dataset.sensor_windows(ticks, size))


def test_only_what_fits_lives_on_the_devices(workspace):
    dataset, features = workspace.dataset, workspace.features
    ticks = dataset.sample_ticks("train")[:8]
    between = dataset.sensor.nbytes - 1
    feed = make_feed("auto", dataset, features, make_mesh(1), free_bytes=int(between / RESIDENT_SHARE))
    assert feed.resident.names == {"vl"}
    assert_same_bits(completed(feed, dataset, features, ticks), dataset, features, ticks)
    with pytest.raises(UserError, match=r"--feed device: .* do not fit on 1 device"):
        make_feed("device", dataset, features, make_mesh(1), free_bytes=int(between / RESIDENT_SHARE))


def test_a_cpu_is_fed_from_the_host_unless_told_otherwise(workspace):
    feed = make_feed("auto", workspace.dataset, workspace.features, make_mesh(1))
    assert not feed.resident.names
    assert "host" in feed.describe()


def test_a_set_without_sensor_gives_none(tmp_path):
    workspace = make_workspace(tmp_path, has_sensor=False)
    dataset = workspace.dataset
    features = FeatureTable.open(dataset, workspace.cache)
    ticks = dataset.sample_ticks("all")
    feed = make_feed("device", dataset, features, make_mesh(1))
    found = completed(feed, dataset, features, ticks)
    assert feed.resident.names == {"vl"}
    assert found.observation.sensor is None
    assert found.observation.has_sensor is None
    assert_same_bits(found, dataset, features, ticks)


def compare_on_eight_devices(root):
    """Runs in a process with eight devices, none of which could hold the whole stream."""
    workspace = make_workspace(Path(root))
    dataset, features = workspace.dataset, workspace.features
    ticks = np.resize(dataset.sample_ticks("all"), 96)
    total = dataset.sensor.nbytes + features.gather(features.records)[0].nbytes
    for fsdp in (1, 4):
        feed = make_feed(
            "auto", dataset, features, make_mesh(8, fsdp), free_bytes=int(total / 4 / RESIDENT_SHARE)
        )
        assert "sensor" in feed.split
        held = feed.resident.sensor.addressable_shards[0].data.nbytes
        assert held <= dataset.sensor.nbytes // 8 + 1026 * 4
        assert_same_bits(completed(feed, dataset, features, ticks), dataset, features, ticks)
    print(json.dumps({"compared": len(ticks)}))


def test_a_stream_split_over_eight_devices_gives_the_same_windows(tmp_path):
    assert run_on_eight_devices(SCRIPT, tmp_path) == {"compared": 96}


@given(
    sizes=st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40)),
    num_devices=st.integers(1, 64),
    free=st.integers(0, 1 << 40),
)
def test_what_is_placed_fits(sizes, num_devices, free):
    named = dict(zip(("sensor", "vl"), sizes, strict=True))
    placed = _place(named, num_devices, free)
    held = sum(-(-named[name] // num_devices) if split else named[name] for name, split in placed.items())
    assert held <= RESIDENT_SHARE * free
    assert not any(split for name, split in placed.items() if num_devices == 1)
