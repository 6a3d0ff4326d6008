"""Placement rules; the devices themselves are simulated in tests/vla_jax/training/test_devices.py."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from vla_jax.errors import UserError
from vla_jax.training.sharding import FSDP_AXIS, MIN_SHARDED_ELEMENTS, make_mesh, parameter_spec


def test_the_longest_divisible_axis_is_split():
    assert parameter_spec((512, 1024), 8) == PartitionSpec(None, FSDP_AXIS)
    assert parameter_spec((1025, 512), 8) == PartitionSpec(None, FSDP_AXIS)
    assert parameter_spec((3, 1026, 512), 2) == PartitionSpec(None, FSDP_AXIS, None)


def test_small_or_indivisible_arrays_stay_whole():
    assert parameter_spec((7,), 8) == PartitionSpec()
    assert parameter_spec((1025, 1027), 8) == PartitionSpec()
    assert parameter_spec((), 8) == PartitionSpec()


@given(shape=st.lists(st.integers(1, 300), max_size=3), fsdp=st.integers(1, 8))
def test_a_split_axis_always_divides(shape, fsdp):
    spec = parameter_spec(tuple(shape), fsdp)
    split = [size for size, axis in zip(shape, spec, strict=False) if axis == FSDP_AXIS]
    assert len(split) <= 1
    assert all(size % fsdp == 0 for size in split)
    if split:
        assert jax.numpy.prod(jax.numpy.asarray(shape)) >= MIN_SHARDED_ELEMENTS


def test_asking_for_more_devices_than_there_are_is_said():
    available = len(jax.devices())
    with pytest.raises(UserError, match=f"has {available} cpu device"):
        make_mesh(available + 1)
    with pytest.raises(UserError, match="does not divide"):
        make_mesh(1, fsdp=2)
