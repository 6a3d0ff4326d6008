"""Values followed through the real update and the real validation, against the same calculated in NumPy.

Most networks here have parameters of zero: they predict zero in their own units, so that a sample's error is the mean
square of its actions, and the loss says what each sample counts.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.vla_jax.training import synthetic
from vla_jax.policy.network import PolicyNetwork, abstract_network
from vla_jax.preprocessing.preprocessor import Preprocessor
from vla_jax.storage.array_items import leaf_name
from vla_jax.training.state import initialise_state
from vla_jax.training.step import train_step, validation_step

ROWS = 8


class Trainer(synthetic.Trainer):
    """Runs the update operation by operation: what is computed once with few parameters is not worth compiling.

    Networks of one configuration begin with the same parameters.
    """

    def __init__(self, config):
        super().__init__(config)
        self.update = functools.partial(train_step, config, self.structure, self.optimizer)

    def begin(self, abstract):
        return initialise_state(self.config, self.optimizer, abstract, first_network(self.config.policy))


@functools.cache
def first_network(policy):
    made = jax.jit(lambda: nnx.split(PolicyNetwork(policy, rngs=nnx.Rngs(0)), nnx.Param, ...)[1:])()
    return nnx.merge(nnx.graphdef(abstract_network(policy)), *made)


CONFIDENCE = np.linspace(0.2, 1.6, ROWS).astype(np.float32)


def config(head="regression", fusion="concat", *, optimizer=None, **changes):
    """Without dropout, with an encoder that compiles at once; a diffusion head predicts the clean actions."""
    plain = synthetic.config(head, fusion)
    policy = plain.policy
    own = {"prediction": "sample"} if head == "diffusion" else {}
    policy = dataclasses.replace(
        policy,
        head=dataclasses.replace(policy.head, dropout=0.0, **own),
        sensor=dataclasses.replace(policy.sensor, dropout=0.0, num_conv_layers=1, use_transformer=False),
        fusion=dataclasses.replace(policy.fusion, dropout=0.0),
    )
    return dataclasses.replace(
        plain,
        policy=policy,
        optimizer=dataclasses.replace(plain.optimizer, schedule="constant", **(optimizer or {})),
        **({"sensor_dropout": 0.0} | changes),
    )


def batch(**changes):
    """Rows of very different errors and confidences; every fourth is without sensor."""
    plain = synthetic.batch(ROWS)
    sizes = np.geomspace(0.1, 3.0, ROWS).astype(np.float32)[:, None, None]
    return plain.replace(actions=plain.actions * sizes, confidence=CONFIDENCE, **changes)


def predicting_zero(config):
    trainer = Trainer(config)
    trainer.state = dataclasses.replace(
        trainer.state, params=jax.tree.map(jnp.zeros_like, trainer.state.params)
    )
    return trainer


def parameters(trainer):
    """Name → values, on the host."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(trainer.state.params))
    return {leaf_name(path): np.asarray(value) for path, value in leaves}


def errors(batch):
    return np.square(batch.actions).mean(axis=(1, 2))


@pytest.mark.parametrize(
    ("head", "fusion"), [("regression", "concat"), ("diffusion", "concat"), ("regression", "none")]
)
def test_a_sample_counts_by_its_confidence_and_by_the_sensor_that_is_read(head, fusion):
    given = batch()
    reads = given.observation.has_sensor & (fusion != "none")
    weights = CONFIDENCE * np.where(reads, 3.0, 1.0)
    if head == "regression":
        weights = weights / weights.mean()
    loss = predicting_zero(config(head, fusion, sensor_loss_weight=3.0)).step(given)["train/loss"]
    assert loss == pytest.approx(np.mean(weights * errors(given)), rel=1e-5)


def test_a_hidden_sensor_neither_counts_nor_is_read():
    hidden = config(sensor_dropout=0.9999, sensor_loss_weight=3.0)
    given = batch()
    loss = predicting_zero(hidden).step(given)["train/loss"]
    assert loss == pytest.approx(np.mean(CONFIDENCE / CONFIDENCE.mean() * errors(given)), rel=1e-5)
    other = given.replace(observation=given.observation.replace(sensor=3 * given.observation.sensor))
    for chance, same in ((0.9999, True), (0.0, False)):
        losses = [
            Trainer(dataclasses.replace(hidden, sensor_dropout=chance)).step(seen)["train/loss"]
            for seen in (given, other)
        ]
        assert (losses[0] == losses[1]) is same


def test_a_sensor_is_hidden_as_often_as_configured_and_anew_at_each_update():
    """Where samples differ in nothing else, the loss says how many were hidden."""
    rows = 400
    given = synthetic.batch(rows).replace(actions=np.ones((rows, 8, 7), np.float32))
    given = given.replace(observation=given.observation.replace(has_sensor=np.ones(rows, bool)))
    frozen = {"lr": 1e-30, "sensor_lr": 1e-30, "min_lr": 0.0}
    trainer = predicting_zero(
        config("diffusion", sensor_dropout=0.25, sensor_loss_weight=2.0, optimizer=frozen)
    )
    shown = [trainer.step(given)["train/loss"] - 1.0 for _ in range(3)]
    assert np.mean(shown) == pytest.approx(0.75, abs=0.06)
    assert len(np.unique(np.round(shown, 4))) > 1


@pytest.mark.parametrize("name", ["sensor_noise", "feature_noise"])
def test_noise_reaches_the_network(name):
    losses = [Trainer(config(**{name: size})).step(batch())["train/loss"] for size in (0.0, 1e-9, 0.5)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert abs(losses[2] - losses[0]) > 1e-4


def test_dropout_is_on_in_training_and_off_in_validation():
    still = config()
    for part in ("head", "sensor"):
        dropping = dataclasses.replace(getattr(still.policy, part), dropout=0.5)
        lively = dataclasses.replace(still, policy=dataclasses.replace(still.policy, **{part: dropping}))
        calm, loud = (Trainer(c) for c in (still, lively))
        assert sums(calm, batch())["loss"] == pytest.approx(sums(loud, batch())["loss"], rel=1e-5)
        assert abs(calm.step(batch())["train/loss"] - loud.step(batch())["train/loss"]) > 1e-4


def test_the_average_follows_the_new_parameters():
    """After the first update its decay is (1 + 0) / (10 + 0)."""
    trainer = Trainer(config(optimizer={"lr": 0.01, "sensor_lr": 0.01}))
    before = parameters(trainer)
    trainer.step(batch())
    after = parameters(trainer)
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(trainer.state.ema_params))
    assert max(np.abs(after[name] - before[name]).max() for name in before) > 5e-3
    for path, average in leaves:
        name = leaf_name(path)
        np.testing.assert_allclose(average, 0.1 * before[name] + 0.9 * after[name], atol=1e-6, err_msg=name)


def test_each_group_moves_at_its_own_rate():
    """The first update of Adam moves a parameter by its rate, whatever the gradient."""
    rates = {"encoder": 4e-3, "expert": 1e-3}
    optimizer = {"lr": rates["expert"], "sensor_lr": rates["encoder"], "weight_decay": 0.0}
    trainer = Trainer(config(optimizer=optimizer))
    before = parameters(trainer)
    trainer.step(batch())
    after = parameters(trainer)
    moved = {"encoder": 0.0, "expert": 0.0}
    for name in before:
        group = "encoder" if name.startswith("sensor_encoder") else "expert"
        moved[group] = max(moved[group], np.abs(after[name] - before[name]).max())
    assert moved == pytest.approx(rates, rel=0.01)


def test_a_gradient_is_clipped_and_its_own_length_logged():
    """Far below Adam's epsilon a gradient hardly moves anything; clipped to that, neither does a long one."""
    optimizer = {"lr": 0.01, "sensor_lr": 0.01, "weight_decay": 0.0}
    moved, lengths = {}, {}
    for clip in (1e-10, 1e30):
        trainer = Trainer(config(optimizer=optimizer | {"clip_norm": clip}))
        before = parameters(trainer)
        lengths[clip] = trainer.step(batch())["train/gradient_norm"]
        after = parameters(trainer)
        moved[clip] = max(np.abs(after[name] - before[name]).max() for name in before)
    assert lengths[1e-10] == pytest.approx(lengths[1e30], rel=1e-5)
    assert lengths[1e30] > 0.01
    assert moved[1e30] == pytest.approx(0.01, rel=0.01)
    assert moved[1e-10] < 1e-4


@pytest.mark.parametrize("everything", [False, True])
def test_kernels_decay_and_norms_and_biases_only_on_request(everything):
    """So small a rate moves nothing by the gradient; so large a decay takes a hundredth away."""
    optimizer = {
        "lr": 1e-9,
        "sensor_lr": 1e-9,
        "min_lr": 0.0,
        "weight_decay": 1e7,
        "decay_everything": everything,
    }
    trainer = Trainer(config(optimizer=optimizer))
    before = parameters(trainer)
    trainer.step(batch())
    after = parameters(trainer)
    scales = [name for name in before if name.endswith("scale")]
    assert scales
    for name, value in before.items():
        kept = 0.99 if everything or name.endswith(".kernel") else 1.0
        np.testing.assert_allclose(after[name], kept * value, atol=1e-7, err_msg=name)


def test_windows_that_are_absent_do_not_reach_the_gradient():
    given = batch()
    absent = ~given.observation.has_sensor[:, None, None]
    unread = np.where(absent, np.float16(np.nan), given.observation.sensor)
    moved = []
    for sensor in (given.observation.sensor, unread):
        trainer = Trainer(config())
        trainer.step(given.replace(observation=given.observation.replace(sensor=sensor)))
        moved.append(jax.tree.leaves(jax.device_get((trainer.state.params, trainer.state.statistics))))
    for one, other in zip(*moved, strict=True):
        np.testing.assert_array_equal(one, other)


def sums(trainer, given, normaliser=None):
    preprocessor = trainer.preprocessor if normaliser is None else Preprocessor(normaliser)
    state = trainer.state
    return jax.device_get(
        validation_step(
            trainer.config,
            trainer.structure,
            preprocessor,
            state.params,
            state.statistics,
            jax.device_put(given),
            trainer.key,
            0,
        )
    )


def test_held_out_errors_are_in_recorded_units_and_the_loss_in_the_network_s():
    offset = np.linspace(-2.0, 3.0, 7).astype(np.float32)
    scale = np.geomspace(0.1, 20.0, 7).astype(np.float32)
    normaliser = dataclasses.replace(
        synthetic.identity_normaliser(), action_offset=offset, action_scale=scale
    )
    given = batch(valid=np.arange(ROWS) < 6)
    found = sums(predicting_zero(config()), given, normaliser)
    error = (offset - given.actions)[:6].astype(np.float64)
    np.testing.assert_allclose(found["squared_error"], np.square(error).sum(0).mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["absolute_error"], np.abs(error).sum(0).mean(0), rtol=1e-5)
    assert found["loss"] == pytest.approx(np.square(error / scale).mean(axis=(1, 2)).sum(), rel=1e-5)
    assert found["samples"] == 6
