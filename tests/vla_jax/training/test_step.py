"""One update: it learns, accumulates, and draws its randomness from the step alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vla_jax.training import synthetic
from vla_jax.contracts.observation import Observation
from vla_jax.training.step import add_noise, validation_step


@pytest.mark.parametrize("head", ["regression", "diffusion", "flow", "minimal_iterative"])
def test_repeating_a_batch_lowers_its_loss_without_recompiling(head):
    config = synthetic.config(head)
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, lr=3e-3, sensor_lr=3e-3, schedule="constant")
    )
    trainer, batch = synthetic.Trainer(config), synthetic.batch()
    losses = [trainer.step(batch)["train/loss"] for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert trainer.update._cache_size() == 1


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    """Without dropout and BatchNorm, whose statistics would be those of each part."""
    config = synthetic.config(fusion="none")
    policy = dataclasses.replace(
        config.policy,
        fusion=dataclasses.replace(config.policy.fusion, dropout=0.0),
        head=dataclasses.replace(config.policy.head, dropout=0.0),
    )
    config = dataclasses.replace(config, policy=policy, sensor_dropout=0.0)
    whole = synthetic.Trainer(config)
    parts = synthetic.Trainer(dataclasses.replace(config, grad_accum_steps=4))
    for seed in range(20):
        one, four = (trainer.step(synthetic.batch(seed=seed)) for trainer in (whole, parts))
        assert four["train/loss"] == pytest.approx(one["train/loss"], rel=1e-5)
        assert four["train/gradient_norm"] == pytest.approx(one["train/gradient_norm"], rel=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    config = synthetic.config("diffusion")
    runs = [synthetic.Trainer(c) for c in (config, config, dataclasses.replace(config, seed=1))]
    for trainer in runs:
        trainer.step(synthetic.batch())
    first, second, other = (jax.tree.leaves(jax.device_get(trainer.state.params)) for trainer in runs)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_policy_anchored_on_the_past_learns_what_to_add_to_it():
    """Where the next actions are the last one plus a constant, the loss falls far below what zeros allow."""
    config = synthetic.config()
    config = dataclasses.replace(
        config,
        policy=dataclasses.replace(
            config.policy, head=dataclasses.replace(config.policy.head, z_chunk="previous")
        ),
        optimizer=dataclasses.replace(config.optimizer, lr=3e-3, sensor_lr=3e-3, schedule="constant"),
    )
    trainer = synthetic.Trainer(config)
    rng = np.random.default_rng(0)
    for _ in range(30):
        previous = rng.normal(scale=5.0, size=(8, 7)).astype(np.float32)[:, None].repeat(8, axis=1)
        batch = synthetic.batch()
        batch = batch.replace(
            observation=batch.observation.replace(previous_chunk=previous), actions=previous + 0.5
        )
        loss = trainer.step(batch)["train/loss"]
    assert loss < 1.0


def test_noise_is_one_draw_per_channel_of_a_window():
    config = dataclasses.replace(synthetic.config(), sensor_noise=0.5, feature_noise=0.25)
    seen = Observation(
        vl=jnp.zeros((64, 5, 40)), vl_mask=jnp.ones((64, 5), bool), sensor=jnp.zeros((64, 3, 200))
    )
    noisy = jax.device_get(add_noise(config, seen, jax.random.key(0)))
    np.testing.assert_array_equal(noisy.sensor[:, 1:], noisy.sensor[:, :-1])
    assert noisy.sensor.std() == pytest.approx(0.5, rel=0.05)
    assert noisy.vl.std() == pytest.approx(0.25, rel=0.05)
    np.testing.assert_array_equal(noisy.vl_mask, seen.vl_mask)
    without = add_noise(config, seen.replace(sensor=None), jax.random.key(0))
    assert without.sensor is None
    np.testing.assert_array_equal(without.vl, noisy.vl)


def test_validation_counts_valid_rows_only_and_never_reads_the_answer():
    trainer = synthetic.Trainer(synthetic.config())
    batch = synthetic.batch().replace(valid=np.arange(8) < 5)

    def validate(batch):
        return jax.device_get(
            validation_step(
                trainer.config,
                trainer.structure,
                trainer.preprocessor,
                trainer.state.params,
                trainer.state.statistics,
                jax.device_put(batch),
                trainer.key,
                0,
            )
        )

    sums = validate(batch)
    garbage = jax.tree.map(lambda value: np.concatenate([value[:5], value[4:5].repeat(3, axis=0)]), batch)
    garbage = garbage.replace(valid=batch.valid)
    np.testing.assert_allclose(validate(garbage)["squared_error"], sums["squared_error"], rtol=1e-5)
    assert sums["samples"] == 5
    # Predictions are actions ± error; where the answer changes, the error must change by just that.
    moved = batch.replace(actions=batch.actions + np.float32(100.0))
    assert np.all(validate(moved)["absolute_error"] > 90 * 5)
