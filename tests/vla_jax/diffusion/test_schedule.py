"""The noise schedule against the reference's buffers."""

from dataclasses import fields

import jax.numpy as jnp
import numpy as np
import pytest

from tests.vla_jax import recorded
from vla_jax.diffusion import schedule as diffusion
from vla_jax.diffusion.ddpm import ddpm_coefficients
from vla_jax.diffusion.timesteps import timestep_embedding

STEPS = [50, 100, 1000]


@pytest.mark.parametrize("steps", STEPS)
def test_constants_equal_the_reference(steps):
    expected = recorded.load(f"diffusion_schedule_{steps}").outputs
    schedule = diffusion.cosine_schedule(steps)
    bound = 5e-5 if steps == 1000 else 4e-6
    for name in (field.name for field in fields(schedule)):
        actual = getattr(schedule, name)
        assert actual.dtype == np.float32
        if name in ("betas", "posterior_variance", "alphas", "alphas_cumprod", "alphas_cumprod_prev"):
            np.testing.assert_allclose(actual, expected[name], atol=bound, err_msg=name)
            continue
        # At 1000 steps the variances near t = 0 are small enough for their logarithm to show float32's last bits.
        relative = 1e-4 if name == "posterior_log_variance_clipped" and steps == 1000 else 1e-5
        np.testing.assert_allclose(actual[:-1], expected[name][:-1], rtol=relative, atol=bound, err_msg=name)
        np.testing.assert_allclose(actual[-1], expected[name][-1], rtol=3e-4, err_msg=name)


@pytest.mark.parametrize("steps", STEPS)
def test_algebra_equals_the_reference(steps):
    record = recorded.load(f"diffusion_schedule_{steps}")
    schedule = diffusion.cosine_schedule(steps)
    x_0, noise, x_t, epsilon = (jnp.asarray(record.inputs[name]) for name in ("x0", "noise", "x_t", "eps"))
    t = jnp.asarray(record.inputs["t"])
    noisy = diffusion.add_noise(schedule, x_0, t, noise)
    np.testing.assert_allclose(noisy, record.outputs["q_sample"], atol=2e-5)
    predicted = diffusion.predict_x0(schedule, x_t, t, epsilon)
    np.testing.assert_allclose(predicted, record.outputs["predict_x0"], rtol=3e-4, atol=1e-5)
    rows = ddpm_coefficients(schedule, np.arange(steps)[::-1])
    constants = {name: jnp.asarray(row[::-1].copy())[t][:, None, None] for name, row in rows.items()}
    clipped = jnp.clip(predicted, -1, 1)
    np.testing.assert_allclose(clipped, record.outputs["p_pred_x0_clipped"], rtol=3e-4, atol=1e-5)
    # The reference's mean is the noise form, unclipped.
    mean = constants["recip_alpha"] * (x_t - constants["noise_weight"] * epsilon)
    np.testing.assert_allclose(mean, record.outputs["p_mean"], rtol=3e-4, atol=1e-5)
    variance = jnp.asarray(schedule.posterior_variance)[t][:, None, None]
    np.testing.assert_allclose(variance, record.outputs["p_variance"], atol=5e-5)


@pytest.mark.parametrize("steps", [50, 100])
def test_time_embedding_equals_the_reference(steps):
    expected = recorded.load(f"diffusion_schedule_{steps}").outputs["timestep_embedding"]
    np.testing.assert_allclose(timestep_embedding(jnp.arange(steps), 128), expected, atol=1e-5)
