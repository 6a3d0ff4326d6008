"""One update: it learns, accumulates, and draws its randomness from the step alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vla_jax.training import synthetic
from vla_jax.training.step import add_noise, validation_step


@pytest.mark.parametrize("model_type", ["regression", "diffusion"])
def test_repeating_a_batch_lowers_its_loss_without_recompiling(model_type):
    config = synthetic.config(model_type)
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, lr=3e-3, sensor_lr=3e-3, schedule="constant")
    )
    trainer, batch = synthetic.Trainer(config), synthetic.batch()
    losses = [trainer.step(batch)["train/loss"] for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert trainer.update._cache_size() == 1


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    """Without dropout and BatchNorm, whose statistics would be those of each part."""
    config = synthetic.config(fusion_strategy="none")
    policy = dataclasses.replace(
        config.policy,
        fusion=dataclasses.replace(config.policy.fusion, dropout=0.0),
        expert=dataclasses.replace(config.policy.expert, dropout=0.0),
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
        policy=dataclasses.replace(config.policy, z_chunk="previous"),
        optimizer=dataclasses.replace(config.optimizer, lr=3e-3, sensor_lr=3e-3, schedule="constant"),
    )
    trainer = synthetic.Trainer(config)
    rng = np.random.default_rng(0)
    for _ in range(30):
        previous = rng.normal(scale=5.0, size=(8, 7)).astype(np.float32)
        batch = synthetic.batch() | {
            "previous_action": previous,
            "actions": previous[:, None].repeat(8, axis=1) + 0.5,
        }
        loss = trainer.step(batch)["train/loss"]
    assert loss < 1.0


def test_noise_is_one_draw_per_channel_of_a_window():
    config = dataclasses.replace(synthetic.config(), sensor_noise=0.5, feature_noise=0.25)
    inputs = {"sensor": jnp.zeros((64, 3, 200)), "vl": jnp.zeros((64, 5, 40)), "other": jnp.ones(2)}
    noisy = jax.device_get(add_noise(config, inputs, jax.random.key(0)))
    np.testing.assert_array_equal(noisy["sensor"][:, 1:], noisy["sensor"][:, :-1])
    assert noisy["sensor"].std() == pytest.approx(0.5, rel=0.05)
    assert noisy["vl"].std() == pytest.approx(0.25, rel=0.05)
    np.testing.assert_array_equal(noisy["other"], inputs["other"])


def test_validation_counts_valid_rows_only_and_never_reads_the_answer():
    trainer = synthetic.Trainer(synthetic.config())
    batch = synthetic.batch() | {"valid": np.arange(8) < 5}

    def validate(batch):
        return jax.device_get(
            validation_step(
                trainer.config,
                trainer.structure,
                trainer.normaliser,
                trainer.state.params,
                trainer.state.statistics,
                jax.device_put(batch),
                trainer.key,
            )
        )

    sums = validate(batch)
    garbage = {name: value.copy() for name, value in batch.items()}
    for name in garbage.keys() - {"valid"}:
        garbage[name][5:] = garbage[name][4:5]
    np.testing.assert_allclose(validate(garbage)["squared_error"], sums["squared_error"], rtol=1e-5)
    assert sums["samples"] == 5
    # Predictions are actions ± error; where the answer changes, the error must change by just that.
    moved = batch | {"actions": batch["actions"] + np.float32(100.0)}
    assert np.all(validate(moved)["absolute_error"] > 90 * 5)
