"""The diffusion expert and its samplers against the reference's numbers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.vla_jax import recorded
from vla_jax.heads.diffusion import DiffusionConfig
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


SMALL = DiffusionConfig(hidden_dim=8, num_layers=1, num_heads=2, time_embedding_dim=8, dropout=0.0)


def make(config, *, zero=False):
    head = config.make(8, 7, dtype=jnp.dtype("float32"), remat=False, rngs=nnx.Rngs(0))
    if zero:
        nnx.update(head, jax.tree.map(jnp.zeros_like, nnx.state(head)))
    return head


@pytest.mark.parametrize("knows", [True, False])
def test_the_horizon_embedding_tells_the_tokens_apart(knows):
    head = make(replace(SMALL, horizon_embedding=knows))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 8, 7)), jnp.float32)
    condition = jnp.asarray(rng.normal(size=(2, 8)), jnp.float32)
    t = jnp.array([3, 60])
    order = rng.permutation(8)
    difference = head.predict_noise(x[:, order], t, condition) - head.predict_noise(x, t, condition)[:, order]
    assert bool(np.abs(difference).max() > 1e-4) is knows


def test_several_draws_are_of_noise_and_step_each():
    """A head of zeros misses by what it is asked for: by the noise, or by v, which is nearly the step alone where the
    actions are huge. The mean over several draws varies less, by their number."""
    rows, keys = 1500, jax.random.split(jax.random.key(1))

    def variance(actions, **changes):
        head = make(replace(SMALL, **changes), zero=True)
        loss = head.loss(jnp.zeros((rows, 8)), jnp.full((rows, 8, 7), actions), keys=keys)
        assert loss.shape == (rows,)
        return float(loss.var()) / max(1.0, actions) ** 4, float(loss.mean()) / max(1.0, actions) ** 2

    one, mean = variance(0.0)
    four, mean_of_four = variance(0.0, noise_draws=4)
    assert mean == pytest.approx(1.0, abs=0.02)
    assert mean_of_four == pytest.approx(1.0, abs=0.02)
    assert one == pytest.approx(2 / 56, rel=0.15)
    assert four == pytest.approx(2 / 56 / 4, rel=0.15)
    one, mean = variance(1e3, prediction="v")
    four, mean_of_four = variance(1e3, prediction="v", noise_draws=4)
    assert mean_of_four == pytest.approx(mean, rel=0.05)
    assert four == pytest.approx(one / 4, rel=0.15)


def test_each_row_starts_from_noise_of_its_own_key():
    head = make(SMALL)
    keys = jax.random.split(jax.random.key(0), 3)
    sample = head.sample(jnp.zeros((3, 8)), keys=keys)
    assert np.abs(sample[0] - sample[1]).max() > 1e-3
    alone = head.sample(jnp.zeros((1, 8)), keys=keys[1:2])
    np.testing.assert_allclose(alone[0], sample[1], atol=1e-5)
    ddpm = head.config.sampling("ddpm", 4)
    sample = head.sample(jnp.zeros((2, 8)), keys=keys[jnp.array([1, 1])], sampling=ddpm)
    np.testing.assert_array_equal(sample[0], sample[1])
