"""Policies that are given actions which are planned already, in recorded units."""

import numpy as np
import pytest

from tests.vla_jax.policy.policies import observations, policy_config, tiny_policy
from vla_jax.contracts.observation import Observation
from vla_jax.errors import UserError
from vla_jax.policy.network import PolicyNetwork

PROMISED = np.random.default_rng(5).normal(size=(3, 2, 7)).astype(np.float32)


@pytest.fixture(scope="module", params=["regression", "flow"])
def policy(request):
    return tiny_policy(request.param, prefix_max=3)


def test_promised_actions_come_back_to_the_bit_and_the_rest_goes_on_from_them(policy):
    inputs = observations(3)
    alone, begun = policy.predict(**inputs), policy.predict(**inputs, prefix=PROMISED)
    np.testing.assert_array_equal(begun[:, :2], PROMISED)
    assert (np.abs(begun - alone)[:, 2:].max(axis=(1, 2)) > 1e-4).all()
    moved = policy.predict(**inputs, prefix=PROMISED + 1)
    assert (np.abs(moved - begun)[:, 2:].max(axis=(1, 2)) > 1e-4).all()


def test_each_row_has_as_many_as_its_length_says(policy):
    inputs = observations(3)
    padded = np.full((3, 8, 7), np.nan, np.float32)
    padded[:, :2] = PROMISED
    given = {"prefix": padded, "prefix_length": np.array([2, 1, 0])}
    chunks = policy.predict(**inputs, **given)
    for row, count in enumerate(given["prefix_length"]):
        expected = policy.predict(**inputs, prefix=PROMISED[:, :count])[row]
        np.testing.assert_allclose(chunks[row], expected, atol=1e-6)
    observation = Observation(**inputs, prefix=padded, prefix_length=np.array([2, 1, 0]))
    np.testing.assert_array_equal(policy.infer(observation), chunks)


def test_it_compiles_once_whatever_is_promised(policy, monkeypatch):
    inputs = observations(3)
    policy.predict(**inputs)
    monkeypatch.setattr(PolicyNetwork, "sample", None)  # a second trace would fail
    policy.predict(**inputs, prefix=PROMISED)
    policy.predict(**inputs, prefix=PROMISED[:, :1], prefix_length=np.array([1, 0, 1]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prefix": PROMISED[:2]}, r"prefix has shape \(2, 8, 7\), expected \(3, 8, 7\)"),
        ({"prefix": PROMISED[..., :6]}, r"prefix has shape \(3, 8, 6\)"),
        ({"prefix": np.zeros((3, 9, 7))}, r"prefix has shape \(3, 9, 7\)"),
        ({"prefix": PROMISED[0]}, r"prefix has shape \(2, 7\)"),
        (
            {"prefix": PROMISED, "prefix_length": np.array(2)},
            r"prefix_length has shape \(\), expected \(3,\)",
        ),
        ({"prefix": np.zeros((3, 4, 7))}, r"prefix_length is \[4, 4, 4\], each must be from 0 to 3"),
        ({"prefix": PROMISED, "prefix_length": [2, -1, 0]}, r"each must be from 0 to 3"),
        ({"prefix": PROMISED, "plan_length": [1, 2, 2]}, r"plan_length is .*from prefix_length to 8"),
        ({"prefix": np.full((3, 2, 7), np.inf)}, "not finite, because prefix is not"),
    ],
)
def test_what_cannot_be_promised_is_refused(policy, given, message):
    with pytest.raises(ValueError, match=message):
        policy.predict(**observations(3), **given)


def test_a_policy_trained_without_takes_none():
    policy, inputs = tiny_policy("regression"), observations(3)
    with pytest.raises(ValueError, match="prefix does not belong"):
        policy.predict(**inputs, prefix=PROMISED)
    with_more = Observation(**inputs, prefix=PROMISED)
    np.testing.assert_array_equal(policy.infer(with_more), policy.predict(**inputs))


@pytest.mark.parametrize("head", ["diffusion", "flow"])
def test_a_guided_policy_is_moved_by_the_plan_and_leaves_what_is_promised(head):
    inputs = observations(3)
    free = tiny_policy(head).predict(**inputs)
    plan = free[[1, 2, 0]]
    guided = tiny_policy(head, guided=True)
    np.testing.assert_allclose(guided.predict(**inputs), free, atol=1e-4)
    lengths = {"prefix_length": np.full(3, 2), "plan_length": np.full(3, 5)}
    chunks = guided.predict(**inputs, prefix=plan, **lengths)
    np.testing.assert_array_equal(chunks[:, :2], plan[:, :2])
    assert (np.abs(chunks - free)[:, 2:5].max(axis=(1, 2)) > 1e-3).all()


def test_who_cannot_be_guided_is_refused():
    with pytest.raises(UserError, match="a regression policy cannot be guided"):
        tiny_policy("regression", guided=True)
    with pytest.raises(UserError, match="was trained to go on from promised actions"):
        tiny_policy("flow", prefix_max=2, guided=True)


def test_a_prefix_leaves_something_to_predict():
    assert policy_config("flow", prefix_max=7).head.longest_prefix == 7
    with pytest.raises(UserError, match="a prefix of 8 actions leaves nothing to predict of a chunk of 8"):
        policy_config("flow", prefix_max=8)
