"""The sensor encoder against the reference's numbers, and its own properties."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.vla_jax import recorded
from vla_jax.models.config import SensorEncoderConfig
from vla_jax.models.resample import resample
from vla_jax.models.sensor_encoder import SensorEncoder, StridedConv

CASES = ["a_t65", "b_t650", "c_t130_to_65", "d_t40_to_65", "e_no_transformer"]


@pytest.mark.parametrize("case", CASES)
def test_features_equal_the_reference(case):
    record = recorded.load(f"sensor_encoder_{case}")
    network = recorded.encoder_policy(record)
    features, convolved = recorded.quick_jit(
        lambda sensor: (network.encode_sensor(sensor), network.sensor_encoder.convolve(sensor))
    )(record.inputs["sensor_data"])
    # torch keeps channels before time.
    np.testing.assert_allclose(convolved.swapaxes(1, 2), record.outputs["conv_backbone"], atol=1e-5)
    np.testing.assert_allclose(features, record.outputs["features"], atol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "nearest", "nearest-exact", "area"])
@pytest.mark.parametrize(("length", "target"), [(130, 65), (40, 65), (7, 5), (5, 7), (650, 65)])
def test_resampling_equals_torch(mode, length, target):
    torch = pytest.importorskip("torch")
    signal = np.random.default_rng(0).normal(size=(2, 3, length)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(signal), size=target, mode=mode).numpy()
    actual = resample(jnp.asarray(signal.swapaxes(1, 2)), target, mode).swapaxes(1, 2)
    np.testing.assert_allclose(actual, expected, atol=3e-6)


def test_rows_are_averaged_before_the_convolutions():
    """In windows that they divide, in others, and in one that is shorter than an average."""

    def encoder(length, averaged):
        config = SensorEncoderConfig(
            3, length, hidden_dim=4, output_dim=4, num_heads=2, averaged_rows=averaged
        )
        return SensorEncoder(config, dtype=jnp.dtype("float32"), remat=False, rngs=nnx.Rngs(0))

    rng = np.random.default_rng(0)
    for length, averaged, num_rows in ((12, 4, 3), (13, 4, 4), (12, 1, 12), (3, 4, 1)):
        sensor = jnp.asarray(rng.normal(size=(2, length, 3)), jnp.float32)
        expected = encoder(num_rows, 1)(resample(sensor, num_rows, "area"))
        np.testing.assert_allclose(encoder(length, averaged)(sensor), expected, atol=1e-6)
    ramp = jnp.arange(8.0)[None, :, None].repeat(3, axis=2)
    np.testing.assert_array_equal(resample(ramp, 2, "area")[0, :, 0], [1.5, 5.5])


def test_the_steps_that_are_read_one_by_one_are_those_whose_mean_is_read():
    """With a kernel that weighs all steps alike the feature is the mean's; with another it is not."""

    def encoder(readout):
        config = SensorEncoderConfig(
            3, 9, hidden_dim=4, output_dim=4, num_heads=2, num_conv_layers=2, readout=readout
        )
        return SensorEncoder(config, dtype=jnp.dtype("float32"), remat=False, rngs=nnx.Rngs(0))

    sensor = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 3)), jnp.float32)
    mean, steps = encoder("mean"), encoder("flatten")
    kernel = mean.project_in.kernel[...] / 3
    steps.project_in.kernel[...] = jnp.concatenate([kernel] * 3)
    np.testing.assert_allclose(steps(sensor), mean(sensor), atol=1e-6)
    steps.project_in.kernel[...] = jnp.concatenate([kernel, kernel, -kernel])
    assert np.abs(steps(sensor) - mean(sensor)).max() > 0.01


def test_odd_and_even_lengths_halve_as_torch_halves_them():
    torch = pytest.importorskip("torch")
    conv = StridedConv(3, 5, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    for length in (1, 2, 5, 8):
        x = np.random.default_rng(length).normal(size=(2, length, 3)).astype(np.float32)
        kernel = np.asarray(conv.kernel[...]).transpose(2, 1, 0).copy()
        expected = torch.nn.functional.conv1d(
            torch.from_numpy(x.transpose(0, 2, 1).copy()), torch.from_numpy(kernel), stride=2, padding=1
        )
        np.testing.assert_allclose(conv(jnp.asarray(x)), expected.numpy().transpose(0, 2, 1), atol=1e-5)
