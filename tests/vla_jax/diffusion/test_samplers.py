"""Samplers and time steps against the schedulers of diffusers, for options that the reference lacks."""

import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.diffusion import schedule as diffusion
from vla_jax.diffusion.ddim import ddim_coefficients, ddim_sample, ddim_step
from vla_jax.diffusion.ddpm import ddpm_coefficients, ddpm_mean, ddpm_sample
from vla_jax.diffusion.timesteps import sampling_timesteps

torch = pytest.importorskip("torch")
SCHEDULE = diffusion.cosine_schedule(100)
SHAPE = (2, 8, 7)


@pytest.fixture(scope="module")
def schedulers():
    return pytest.importorskip("diffusers.schedulers")


def make_scheduler(kind, **options):
    return kind(num_train_timesteps=100, trained_betas=SCHEDULE.betas, **options)


def draw(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def output(x):
    """Stands for the network: any function of x does."""
    return 0.3 * x + 0.1


@pytest.mark.parametrize(
    ("spacing", "steps"), [("trailing", 10), ("trailing", 25), ("leading", 10), ("linspace", 10)]
)
def test_time_steps_equal_diffusers(schedulers, spacing, steps):
    scheduler = make_scheduler(schedulers.DDIMScheduler, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    np.testing.assert_array_equal(sampling_timesteps(100, steps, spacing), scheduler.timesteps.numpy())


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_time_steps_are_distinct_and_inside(spacing):
    for total in (50, 100):
        for steps in range(1, total + 1):
            chosen = sampling_timesteps(total, steps, spacing)
            assert len(set(chosen)) == steps
            assert chosen.min() >= 0
            assert chosen.max() < total
            assert (np.diff(chosen) < 0).all()
            if spacing == "trailing":
                assert chosen[0] == total - 1
    with pytest.raises(ValueError, match="101 sampling steps"):
        sampling_timesteps(100, 101, spacing)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("clip", [1.0, None])
def test_ddim_equals_diffusers(schedulers, prediction, eta, clip):
    scheduler = make_scheduler(
        schedulers.DDIMScheduler,
        timestep_spacing="trailing",
        prediction_type="v_prediction" if prediction == "v" else prediction,
        clip_sample=clip is not None,
    )
    scheduler.set_timesteps(10)
    x = torch.from_numpy(draw(0))
    noise = np.stack([draw(index + 1) for index in range(10)])
    for index, t in enumerate(scheduler.timesteps):
        given = torch.from_numpy(noise[index]) if eta else None
        x = scheduler.step(output(x), t, x, eta=eta, variance_noise=given).prev_sample
    actual = ddim_sample(
        lambda x, _: output(x),
        jnp.asarray(draw(0)),
        SCHEDULE,
        sampling_timesteps(100, 10, "trailing"),
        per_step=None,
        eta=eta,
        prediction=prediction,
        clip=clip,
        noise=jnp.asarray(noise),
    )
    # The last step's constants lose four digits in float32; unclipped, they multiply everything.
    np.testing.assert_allclose(actual, x.numpy(), rtol=2e-3 if clip is None else 1e-5, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
@pytest.mark.parametrize("steps", [100, 20])
def test_ddpm_mean_equals_diffusers(schedulers, prediction, steps):
    scheduler = make_scheduler(
        schedulers.DDPMScheduler,
        timestep_spacing="trailing",
        prediction_type="v_prediction" if prediction == "v" else prediction,
        clip_sample=True,
        variance_type="fixed_small",
    )
    scheduler.set_timesteps(steps)
    timesteps = sampling_timesteps(100, steps, "trailing")
    np.testing.assert_array_equal(timesteps, scheduler.timesteps.numpy())
    rows = ddpm_coefficients(SCHEDULE, timesteps)
    x = draw(0)
    for index in (0, steps // 2, steps - 1):
        row = {name: jnp.asarray(values[index]) for name, values in rows.items()}
        mean = ddpm_mean(jnp.asarray(x), output(jnp.asarray(x)), row, prediction=prediction)
        t = int(timesteps[index])
        # diffusers draws the noise inside its step, from torch's generator.
        torch.manual_seed(0)
        stepped = scheduler.step(output(torch.from_numpy(x)), t, torch.from_numpy(x)).prev_sample.numpy()
        torch.manual_seed(0)
        noise = torch.randn(SHAPE).numpy()
        np.testing.assert_allclose(mean + row["deviation"] * noise, stepped, rtol=1e-4, atol=2e-5)


def test_an_exact_network_recovers_the_data():
    """With the true noise as the network's output, both samplers end at the data they started from."""
    data = jnp.clip(jnp.asarray(draw(3)), -1, 1)

    def true_noise(x, row):
        signal, sigma = row
        return (x - signal * data) / sigma

    for steps in (100, 7):
        timesteps = sampling_timesteps(100, steps, "trailing")
        per_step = (
            SCHEDULE.sqrt_alphas_cumprod[timesteps],
            SCHEDULE.sqrt_one_minus_alphas_cumprod[timesteps],
        )
        start = jnp.asarray(draw(4))
        ended = ddim_sample(true_noise, start, SCHEDULE, timesteps, per_step=per_step)
        np.testing.assert_allclose(ended, data, atol=1e-4)
        noise = jnp.asarray(np.random.default_rng(5).normal(size=(steps - 1, *SHAPE)), jnp.float32)
        ended = ddpm_sample(true_noise, start, SCHEDULE, timesteps, per_step=per_step, noise=noise)
        np.testing.assert_allclose(ended, data, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
def test_targets_and_their_inverse_agree(prediction):
    data, noise = jnp.asarray(draw(1)), jnp.asarray(draw(2))
    t = jnp.array([3, 60])
    noisy = diffusion.add_noise(SCHEDULE, data, t, noise)
    target = diffusion.target(SCHEDULE, prediction, data, t, noise)
    for index, step in enumerate(t):
        constants = {
            name: jnp.asarray(values[0])
            for name, values in diffusion.step_constants(SCHEDULE, np.array([int(step)])).items()
        }
        clean, epsilon = diffusion.split_prediction(
            prediction, noisy[index : index + 1], target[index : index + 1], constants
        )
        np.testing.assert_allclose(clean[0], data[index], atol=1e-5)
        np.testing.assert_allclose(epsilon[0], noise[index], atol=1e-5)


def test_noise_is_required_where_it_is_drawn():
    timesteps = sampling_timesteps(100, 5, "trailing")
    with pytest.raises(ValueError, match="eta > 0"):
        ddim_sample(lambda x, _: x, jnp.asarray(draw(0)), SCHEDULE, timesteps, per_step=None, eta=0.5)
    rows = ddim_coefficients(SCHEDULE, timesteps, eta=0.0)
    assert not rows["sigma"].any()
    last = {name: jnp.asarray(values[-1]) for name, values in rows.items()}
    x = jnp.asarray(draw(0))
    # Arriving at the data, only x_0 is left.
    clean = diffusion.predict_x0(SCHEDULE, x, jnp.full(2, int(timesteps[-1])), output(x))
    np.testing.assert_allclose(ddim_step(x, output(x), last), jnp.clip(clean, -1, 1), atol=1e-6)
