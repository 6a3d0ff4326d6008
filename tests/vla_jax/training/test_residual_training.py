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
from vla_jax.preprocessing.normaliser import Normaliser
from vla_jax.storage.array_items import named_leaves
from vla_jax.training.config import TrainConfig
from vla_jax.training.residual import errors_by_chunk_age, train_residual
from vla_jax.training.residual_config import ResidualTrainConfig
from vla_jax.training.residual_samples import ResidualSamples, make_samples

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
    samples = make_samples(dataset, ticks, chunks_of(ticks), 3)
    np.testing.assert_array_equal(samples.tick, ticks[dataset.has_sensor(ticks)])
    for age in range(4):
        there = samples.is_there[:, age]
        tick, action = samples.tick[there], samples.action[there, age]
        np.testing.assert_array_equal(action[:, 0], tick - age)
        np.testing.assert_array_equal(action[:, 1], age)
        episode = dataset.ticks.episode
        np.testing.assert_array_equal(episode[tick - age], episode[tick])
    # What the policy learns as the first action of the tick's own chunk.
    np.testing.assert_array_equal(samples.target, dataset.actions(samples.tick)[:, 0])


def test_every_tick_with_a_sensor_stands_beside_every_chunk_that_there_is(workspace):
    dataset = workspace.dataset
    # Without some of the samples, as where features are missing.
    ticks = np.delete(workspace.features.sample_ticks("all"), [5, 6, 30])
    samples = make_samples(dataset, ticks, chunks_of(ticks), 3)
    assert not dataset.has_sensor(ticks).all()
    for tick, is_there in zip(samples.tick.tolist(), samples.is_there.tolist(), strict=True):
        assert is_there == [
            tick - age in set(ticks.tolist())
            and dataset.ticks.episode[tick - age] == dataset.ticks.episode[tick]
            for age in range(4)
        ]
    nothing = make_samples(dataset, ticks[:0], chunks_of(ticks[:0]), 3)
    assert (len(nothing), nothing.action.shape) == (0, (0, 4, 7))


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

    def samples(self):
        rng = np.random.default_rng(1)
        is_there = np.ones((self.size, 4), bool)
        is_there[: self.size // 4, 3] = False
        action = np.zeros((self.size, 4, 2), np.float32)
        action[..., 0] = 0.5 + 0.1 * rng.normal(size=self.size)[:, None]
        # Older chunks are off by more, in the other direction than the force.
        action[..., 0] -= 0.05 * np.arange(4) * self.forces[:, None]
        target = np.stack([action[:, 0, 0], np.zeros(self.size)], axis=1)
        action[~is_there] = 100.0
        return ResidualSamples(np.arange(self.size), action, is_there, target.astype(np.float32))


def policy_training(**changes):
    policy = SimpleNamespace(head=SimpleNamespace(normalises_weights=True))
    return SimpleNamespace(policy=policy, sensor_noise=0.0, feature_noise=0.0, **changes)


def train(world, config=CONFIG, samples=None, **options):
    samples = world.samples() if samples is None else samples
    return train_residual(config, NETWORK, policy_training(), NORMALISER, world, samples, **options)


def test_what_the_sensor_alone_tells_is_learnt_for_every_age():
    world, said = World(), []
    network = train(world, say=said.append)
    errors = errors_by_chunk_age(network, NORMALISER, world, world.samples(), batch_size=100)
    assert [(error.chunk_age, error.samples) for error in errors] == [(0, 256), (1, 256), (2, 256), (3, 192)]
    for error in errors:
        forces = world.forces[-error.samples :]
        expected = 0.5 * np.mean(np.square(0.05 * error.chunk_age * forces))
        assert error.policy == pytest.approx(expected, rel=1e-4, abs=1e-12)
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
    samples = world.samples()
    wrong = np.where(world.ticks.episode[:, None] == 1, 100.0, samples.target).astype(np.float32)
    spoilt = train(world, samples=replace(samples, target=wrong))
    errors = errors_by_chunk_age(spoilt, NORMALISER, world, samples, batch_size=256)
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
        train_residual(CONFIG, NETWORK, training, NORMALISER, world, world.samples())
        for training in (policy_training(), config)
    )
    clean_error, noisy_error = (
        errors_by_chunk_age(network, NORMALISER, world, world.samples(), batch_size=256)[3].corrected
        for network in (clean, noisy)
    )
    assert noisy_error > 2 * clean_error
