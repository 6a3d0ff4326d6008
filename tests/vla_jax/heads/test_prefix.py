"""Heads that go on from promised actions, and the loss that leaves these out."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.vla_jax import recorded
from vla_jax.diffusion.flow_path import draw_times
from vla_jax.heads.diffusion import DiffusionConfig
from vla_jax.heads.flow import FlowConfig
from vla_jax.heads.minimal_iterative import MinimalIterativeConfig
from vla_jax.heads.prefix import Prefix, draw_prefix, mean_of_the_rest
from vla_jax.heads.regression import RegressionConfig

SIZES = {"hidden_dim": 8, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
NOISY = SIZES | {"time_embedding_dim": 8}
CONFIGS = {
    "regression": RegressionConfig(**SIZES),
    "diffusion": DiffusionConfig(**NOISY, steps=10, ddim_steps=2),
    "flow": FlowConfig(**NOISY, sampling_steps=2),
    "minimal_iterative": MinimalIterativeConfig(**NOISY),
}
ROWS, HORIZON, DIMS = 3, 6, 2
KEYS = jax.random.split(jax.random.key(0))


def make(config):
    return config.make(HORIZON, DIMS, dtype=jnp.dtype("float32"), remat=False, rngs=nnx.Rngs(0))


def prefix(*promised, planned=None, seed=0):
    rng = np.random.default_rng(seed)
    actions = jnp.asarray(rng.normal(size=(len(promised), HORIZON, DIMS)), jnp.float32)
    promised = jnp.array(promised)
    return Prefix(actions, promised, promised if planned is None else jnp.array(planned))


def sample(head, rows, **given):
    condition = jnp.linspace(-1.0, 1.0, rows * 8).reshape(rows, 8)
    keys = jax.random.split(jax.random.key(1), rows)
    return np.asarray(recorded.quick_jit(lambda: head.sample(condition, keys=keys, **given))())


def test_the_loss_leaves_promised_actions_out():
    rng = np.random.default_rng(0)
    error = rng.random((4, HORIZON, DIMS)).astype(np.float32)
    promised = [0, 1, 3, 5]
    expected = [error[row, count:].mean() for row, count in enumerate(promised)]
    np.testing.assert_allclose(mean_of_the_rest(jnp.asarray(error), prefix(*promised)), expected, rtol=1e-6)
    np.testing.assert_allclose(mean_of_the_rest(jnp.asarray(error), None), error.mean(axis=(1, 2)), rtol=1e-6)


def test_shorter_prefixes_are_drawn_more_often():
    drawn = draw_prefix(jax.random.key(0), jnp.zeros((4000, HORIZON, DIMS)), 3)
    weights = np.exp(-np.arange(4))
    np.testing.assert_allclose(np.bincount(drawn.promised) / 4000, weights / weights.sum(), atol=0.03)
    assert draw_prefix(jax.random.key(0), jnp.zeros((4000, HORIZON, DIMS)), 0) is None


def test_the_loss_of_a_flow_with_a_prefix_is_that_of_the_rest():
    """A head of zeros misses by the whole velocity."""
    head = make(replace(CONFIGS["flow"], prefix_max=4))
    nnx.update(head, jax.tree.map(jnp.zeros_like, nnx.state(head)))
    actions = prefix(*[0] * 16, seed=3).actions
    loss = recorded.quick_jit(lambda: head.loss(jnp.zeros((16, 8)), actions, keys=KEYS))()
    noise = np.asarray(jax.random.normal(KEYS[1], actions.shape))
    promised = np.asarray(draw_prefix(jax.random.fold_in(KEYS[0], 0), actions, 4).promised)
    assert len(set(promised)) > 2
    error = np.square(np.asarray(actions) - noise)
    expected = [error[row, count:].mean() for row, count in enumerate(promised)]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_promised_actions_come_back_as_they_are_and_the_rest_goes_on_from_them(kind):
    head, given = make(replace(CONFIGS[kind], prefix_max=3)), prefix(3, 1, 0)
    with_prefix, without = sample(head, 3, prefix=given), sample(head, 3)
    for row, count in enumerate((3, 1, 0)):
        np.testing.assert_array_equal(with_prefix[row, :count], given.actions[row, :count])
    assert (np.abs(with_prefix - without)[:2, 3:].max(axis=(1, 2)) > 1e-4).all()
    np.testing.assert_allclose(with_prefix[2], without[2], atol=1e-6)
    # What is not promised is not looked at.
    hidden = jnp.where(given.given[..., None], given.actions, jnp.nan)
    again = sample(head, 3, prefix=Prefix(hidden, given.promised, given.planned))
    np.testing.assert_array_equal(again, with_prefix)


def test_promised_actions_have_the_time_of_clean_ones():
    """Then it does not matter to them how noisy the others are."""
    head, given = make(replace(CONFIGS["flow"], prefix_max=6)), prefix(6)

    def output(t):
        return head(given.actions, head.embed_time(jnp.array([t])), jnp.ones((1, 8)), prefix=given)

    np.testing.assert_array_equal(output(0.0), output(100.0))
    np.testing.assert_allclose(
        output(0.0), head(given.actions, head.embed_time(jnp.array([100.0])), jnp.ones((1, 8))), atol=1e-6
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_prefix_gives_a_head_no_other_first_weights(kind):
    off, on = (dict(nnx.to_flat_state(nnx.state(make(replace(CONFIGS[kind], prefix_max=n))))) for n in (0, 3))
    assert {path for path in on if path not in off} == (
        {("prefix_in", "kernel"), ("prefix_in", "bias")} if kind == "regression" else set()
    )
    for path, leaf in off.items():
        np.testing.assert_array_equal(leaf[...], on[path][...])


@pytest.mark.parametrize("kind", ["regression", "flow"])
def test_a_head_learns_to_go_on_from_its_prefix(kind):
    """The actions of a chunk are all one number, and nothing else tells which."""
    structure, params = nnx.split(make(replace(CONFIGS[kind], prefix_max=2)))
    optimizer = optax.adam(1e-2)

    def draw(key, rows):
        return jnp.broadcast_to(jax.random.normal(key, (rows, 1, DIMS)), (rows, HORIZON, DIMS))

    def update(carry, key):
        def loss_of(params):
            head, keys = nnx.merge(structure, params), jax.random.split(key, 3)
            return head.loss(jnp.zeros((64, 8)), draw(keys[2], 64), keys=keys[:2]).mean()

        updates, state = optimizer.update(jax.grad(loss_of)(carry[0]), carry[1])
        return (optax.apply_updates(carry[0], updates), state), None

    train = jax.jit(lambda params, keys: jax.lax.scan(update, (params, optimizer.init(params)), keys)[0][0])
    head = nnx.merge(structure, train(params, jax.random.split(jax.random.key(2), 400)))
    actions, once = draw(jax.random.key(3), 32), jnp.ones(32, int)
    keys = jax.random.split(jax.random.key(4), 32)
    known = head.sample(jnp.zeros((32, 8)), keys=keys, prefix=Prefix(actions, once, once))
    unknown = head.sample(jnp.zeros((32, 8)), keys=keys)
    errors = [np.abs(chunk - actions)[:, 1:].mean() for chunk in (known, unknown)]
    assert errors[0] < 0.4 < 0.6 < errors[1]


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v", "velocity", "flow's sample"])
def test_guidance_leaves_promised_actions_as_they_are_and_the_rest_goes_on_from_them(prediction, monkeypatch):
    """prediction: of a diffusion head, or of a flow. Instead of their networks there is what these should learn of
    actions that are nearly one number in each chunk."""
    flows = prediction in ("velocity", "flow's sample")
    changes = {"sampling_steps": 10} if flows else {"steps": 100, "ddim_steps": 10}
    config = replace(CONFIGS["flow" if flows else "diffusion"], prediction=prediction.split()[-1], **changes)
    head = make(config)
    covariance = 0.25 * (jnp.ones((HORIZON, HORIZON)) + 0.05 * jnp.eye(HORIZON))

    def network(self, x_t, time, condition, **_):
        """The estimate where x_t = signal · actions + sigma · noise. time: what `embed_time` was given."""
        t = time[0, 0]
        if flows:
            signal, sigma = t / 100, 1 - t / 100
        else:
            schedule, index = self.schedule, t.astype(int)
            signal = jnp.asarray(schedule.sqrt_alphas_cumprod)[index]
            sigma = jnp.asarray(schedule.sqrt_one_minus_alphas_cumprod)[index]
        inverse = jnp.linalg.inv(signal**2 * covariance + sigma**2 * jnp.eye(HORIZON))
        x_0 = jnp.einsum("hk,bka->bha", signal * covariance @ inverse, x_t)
        noise = jnp.einsum("hk,bka->bha", sigma * inverse, x_t)
        return {
            "epsilon": noise,
            "sample": x_0,
            "v": signal * noise - sigma * x_0,
            "velocity": x_0 - noise,
        }[config.prediction]

    monkeypatch.setattr(type(head), "__call__", network)
    monkeypatch.setattr(type(head), "embed_time", lambda self, t: jnp.tile(t[:, None] * 1.0, 8))
    plan = replace(prefix(2, 2, 0), actions=jnp.full((3, HORIZON, DIMS), 0.8))
    guided, free = sample(head, 3, prefix=plan), sample(head, 3)
    np.testing.assert_array_equal(guided[:2, :2], plan.actions[:2, :2])
    np.testing.assert_allclose(guided[2], free[2], atol=1e-3)
    distance = [np.abs(chunk - 0.8)[:2, 2:].mean() for chunk in (guided, free)]
    assert distance[0] < 0.5 * distance[1]


def test_times_of_a_sample_are_drawn_as_the_configuration_says(monkeypatch):
    head, seen = make(replace(CONFIGS["flow"], time_alpha=1.0, time_shift=4.0)), []
    monkeypatch.setattr(type(head), "embed_time", lambda self, t: seen.append(t) or jnp.tile(t[:, None], 8))
    monkeypatch.setattr(type(head), "__call__", lambda self, x_t, *_, **__: x_t)
    head.loss(jnp.zeros((5, 8)), prefix(*[0] * 5).actions, keys=KEYS)
    np.testing.assert_allclose(
        seen[0] / 100, draw_times(KEYS[0], 5, alpha=1.0, beta=1.0, shift=4.0), rtol=1e-6
    )
