"""What a residual learns from, and that it learns what the sensor alone can tell."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.vla_jax.evaluation.workspace import make_workspace, policy_config
from vla_jax.errors import UserError
from vla_jax.models.residual import ResidualConfig
from vla_jax.policy.residual import Residual
from vla_jax.preprocessing.normaliser import Normaliser
from vla_jax.storage.array_items import named_leaves
from vla_jax.training.config import TrainConfig
from vla_jax.training.residual import errors_by_chunk_age, train_residual
from vla_jax.training.residual_config import ResidualTrainConfig
from vla_jax.training.residual_pairs import ResidualPairs, make_pairs

HORIZON = 8


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("residual"))


def chunks_of(ticks):
    """Each action names the tick that its chunk was predicted at, and its number in it."""
    chunks = np.zeros((len(ticks), HORIZON, 7), np.float32)
    chunks[..., 0], chunks[..., 1] = np.asarray(ticks)[:, None], np.arange(HORIZON)
    return chunks


def test_a_chunk_of_so_many_ticks_ago_gives_its_action_of_that_number(workspace):
    dataset = workspace.dataset
    ticks = workspace.features.sample_ticks("all")
    pairs = make_pairs(dataset, ticks, chunks_of(ticks), 3)
    np.testing.assert_array_equal(pairs.action[:, 0], pairs.tick - pairs.chunk_age)
    np.testing.assert_array_equal(pairs.action[:, 1], pairs.chunk_age)
    # What the policy learns as the first action of the tick's own chunk.
    np.testing.assert_array_equal(pairs.target, dataset.actions(pairs.tick)[:, 0])
    episode = dataset.ticks.episode
    np.testing.assert_array_equal(episode[pairs.tick - pairs.chunk_age], episode[pairs.tick])


def test_every_tick_with_a_sensor_is_paired_with_every_chunk_that_there_is(workspace):
    dataset = workspace.dataset
    # Without some of the samples, as where features are missing.
    ticks = np.delete(workspace.features.sample_ticks("all"), [5, 6, 30])
    expected = {
        (tick, age)
        for tick in ticks.tolist()
        for age in range(4)
        if dataset.has_sensor(np.array([tick]))[0]
        and tick - age in set(ticks.tolist())
        and dataset.ticks.episode[tick - age] == dataset.ticks.episode[tick]
    }
    pairs = make_pairs(dataset, ticks, chunks_of(ticks), 3)
    assert len(pairs) == len(expected)
    assert set(zip(pairs.tick.tolist(), pairs.chunk_age.tolist(), strict=True)) == expected
    assert not dataset.has_sensor(ticks).all()
    nothing = make_pairs(dataset, ticks[:0], chunks_of(ticks[:0]), 3)
    assert (len(nothing), nothing.action.shape) == (0, (0, 7))


# --- a world in which the sensor alone tells what is wrong with an action ---

NORMALISER = Normaliser(
    action_offset=jnp.array([0.5, 0.0]),
    action_scale=jnp.array([0.1, 0.0]),
    force_offset=jnp.float32(0.0),
    force_scale=jnp.float32(1.0),
    ascan_scale=jnp.float32(1.0),
    feature_offset=jnp.zeros((1, 1)),
    feature_scale=jnp.ones((1, 1)),
)
NETWORK = ResidualConfig(action_dim=2, chunk_age_max=3, channels=4, temporal_length=8, hidden_dim=8)
CONFIG = ResidualTrainConfig(steps=250, batch_size=32, lr=1e-2, seed=4)


@dataclass
class World:
    """The force of the newest rows says how far an action is off, the more the older its chunk is. weights: of the two
    episodes."""

    confidences: tuple[float, float] = (1.0, 1.0)
    weights: tuple[float, float] = (1.0, 1.0)
    size: int = 256

    def __post_init__(self):
        rng = np.random.default_rng(0)
        self.forces = rng.uniform(-1, 1, self.size)
        self.episodes = [SimpleNamespace(weight=weight) for weight in self.weights]
        self.ticks = SimpleNamespace(episode=(np.arange(self.size) >= self.size // 2).astype(np.int32))

    def sensor_windows(self, ticks):
        windows = np.zeros((len(ticks), 8, 4), np.float16)
        windows[:, 4:, 0] = self.forces[ticks, None]
        return windows

    def confidence(self, ticks):
        return np.array(self.confidences, np.float32)[self.ticks.episode[ticks]]

    def pairs(self):
        rng = np.random.default_rng(1)
        tick = np.tile(np.arange(self.size), 4)
        age = np.repeat(np.arange(4), self.size)
        action = np.stack([0.5 + 0.1 * rng.normal(size=len(tick)), np.zeros(len(tick))], axis=1)
        target = action + np.stack([0.05 * age * self.forces[tick], np.zeros(len(tick))], axis=1)
        return ResidualPairs(tick, age, action.astype(np.float32), target.astype(np.float32))


def policy_training(**changes):
    policy = SimpleNamespace(head=SimpleNamespace(normalises_weights=True))
    return SimpleNamespace(policy=policy, sensor_noise=0.0, feature_noise=0.0, **changes)


def train(world, config=CONFIG, pairs=None, **options):
    pairs = world.pairs() if pairs is None else pairs
    return train_residual(config, NETWORK, policy_training(), NORMALISER, world, pairs, **options)


def test_what_the_sensor_alone_tells_is_learnt_for_every_age():
    world, said = World(), []
    network = train(world, say=said.append)
    errors = errors_by_chunk_age(Residual(network, NORMALISER), world, world.pairs(), batch_size=100)
    assert [(error.chunk_age, error.samples) for error in errors] == [(age, 256) for age in range(4)]
    for error in errors:
        expected = 0.5 * np.mean(np.square(0.05 * error.chunk_age * world.forces))
        assert error.policy == pytest.approx(expected, rel=1e-4)
    assert errors[3].corrected < 0.1 * errors[3].policy
    assert errors[2].corrected < 0.2 * errors[2].policy
    assert errors[0].corrected < 0.02 * errors[3].policy
    assert len(said) == 10


def test_equal_seeds_give_equal_residuals_and_others_do_not():
    world = World()
    first, again, other = (
        named_leaves(nnx.state(train(world, replace(CONFIG, steps=3, seed=seed)), nnx.Param))
        for seed in (4, 4, 5)
    )
    for name, leaf in first.items():
        np.testing.assert_array_equal(leaf, again[name])
    assert any((leaf != other[name]).any() for name, leaf in first.items())


@pytest.mark.parametrize("counts", [{"confidences": (1.0, 0.0)}, {"weights": (1.0, 1e-6)}], ids=str)
def test_samples_count_by_confidence_and_are_drawn_by_weight(counts):
    world = World(**counts)
    pairs = world.pairs()
    wrong = np.where(world.ticks.episode[pairs.tick][:, None] == 1, 100.0, pairs.target).astype(np.float32)
    spoilt = train(world, pairs=replace(pairs, target=wrong))
    errors = errors_by_chunk_age(Residual(spoilt, NORMALISER), world, pairs, batch_size=256)
    assert errors[3].corrected < 0.3 * errors[3].policy


def test_a_loss_that_is_not_finite_ends_it():
    with pytest.raises(UserError, match=r"stopped being finite before update .*; give a lower --lr"):
        train(World(), replace(CONFIG, lr=1e25, steps=6))


def test_the_update_is_compiled_once_and_its_state_donated(monkeypatch):
    world, lowered = World(), []
    jit = jax.jit

    def noting(function, **options):
        lowered.append(options)
        return jit(function, **options)

    monkeypatch.setattr(jax, "jit", noting)
    train(world, replace(CONFIG, steps=3))
    assert lowered.count({"donate_argnums": 0}) == 1


def test_a_policy_s_own_training_says_how_noisy_windows_are(workspace):
    config = TrainConfig(policy=policy_config(workspace), sensor_noise=50.0)
    world = World()
    clean, noisy = (
        train_residual(CONFIG, NETWORK, training, NORMALISER, world, world.pairs())
        for training in (policy_training(), config)
    )
    clean_error, noisy_error = (
        errors_by_chunk_age(Residual(network, NORMALISER), world, world.pairs(), batch_size=256)[3].corrected
        for network in (clean, noisy)
    )
    assert noisy_error > 2 * clean_error
