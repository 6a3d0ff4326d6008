"""The diffusion expert and its samplers against the reference's numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.vla_jax import recorded
from vla_jax.heads.head_config import Sampling

ATOL = {5: 3e-5, 10: 3e-5, 20: 3e-5, 100: 1e-4}


@pytest.mark.parametrize("case", [*recorded.FUSIONS, "trained_concat"])
def test_noise_and_samples_equal_the_reference(case):
    record = recorded.load(f"diffusion_expert_{case}")
    network = recorded.expert_policy("diffusion", record)
    given, expected, features = record.inputs, record.outputs, record.inputs["sensor_features"]

    @recorded.quick_jit
    def predict_noise(vl):
        condition = network.condition(vl, features)
        rows = [
            network.expert.predict_noise(jnp.asarray(given["x"]), t, condition)
            for t in jnp.asarray(given["eps_t"])
        ]
        return jnp.stack(rows)

    # Compilation is most of this test's time, so both token counts share one batch: five equal tokens say what
    # one says.
    vl = jnp.concatenate([jnp.repeat(given["vl_tokens_s1"], 5, axis=1), given["vl_tokens_s5"]])
    start = jnp.tile(given["ddim_x_T"], (2, 1, 1))
    both = jnp.tile(features, (2, 1))

    @recorded.quick_jit
    def ddim(vl):
        condition = network.condition(vl, both)
        return {
            steps: network.expert.denoise(start, condition, sampling=Sampling("ddim", steps))
            for steps in ATOL
        }

    for tokens in ("s1", "s5"):
        noise = predict_noise(given[f"vl_tokens_{tokens}"])
        np.testing.assert_allclose(noise, expected[f"eps_pred_{tokens}"], atol=2e-5)
    for steps, sample in ddim(vl).items():
        np.testing.assert_allclose(sample[:2], expected[f"ddim{steps}_s1"], atol=ATOL[steps])
        np.testing.assert_allclose(sample[2:], expected[f"ddim{steps}_s5"], atol=ATOL[steps])

    ddpm = network.config.head.sampling("ddpm")
    sample = recorded.quick_jit(
        lambda vl: network.expert.denoise(
            given["ddpm_x_T"], network.condition(vl, features), sampling=ddpm, noise=given["ddpm_noise"]
        )
    )(given["vl_tokens_s5"])
    # Unclipped chains of untrained networks reach 2e4.
    bound = 1e-5 if case == "trained_concat" else 1e-5 * np.abs(expected["ddpm_s5"]).max()
    np.testing.assert_allclose(sample, expected["ddpm_s5"], atol=bound)
