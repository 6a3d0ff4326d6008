"""What is served is what the policy predicts, in whatever batch, and nothing is compiled while serving."""

import asyncio

import jax
import numpy as np
import pytest

from tests.vla_jax.policy.policies import SLOTS, WIDTH, tiny_policy
from tests.vla_jax.serving.servers import request
from vla_jax.contracts.specs import StateWindow
from vla_jax.models.config import AgeEncoderConfig, StateEncoderConfig, StateWindowConfig
from vla_jax.serving.requests import RequestError
from vla_jax.serving.service import PolicyService, batch_sizes

# Two batch sizes are two programs, which may sum in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def ask(service, *messages):
    """Returns the replies to messages that are all there at once; exceptions in their places."""

    async def gather():
        return await asyncio.gather(*map(service.answer, messages), return_exceptions=True)

    return asyncio.run(gather())


def predicted(policy, message, key=None, **extra):
    """What `InsertionPolicy.predict` says of a request alone."""
    sensor = message.get("sensor")
    has_sensor = np.array([sensor is not None])
    mask = message.get("vl_mask", np.ones(len(message["vl"]), bool))
    sensor = None if sensor is None else sensor[None]
    return policy.predict(message["vl"][None], mask[None], sensor, has_sensor, key, **extra)[0]


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, (1,)), (2, (1, 2)), (4, (1, 2, 4)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))]
)
def test_batch_sizes_are_powers_of_two_and_the_largest(largest, sizes):
    assert batch_sizes(largest) == sizes


def test_one_request_is_answered_as_predict_answers_bit_for_bit(service, policy):
    (reply,) = ask(service, request())
    np.testing.assert_array_equal(reply["actions"], predicted(policy, request()))
    assert reply["actions"].dtype == np.float32
    assert reply["policy_timing"]["batch_size"] == 1
    assert 0 < reply["policy_timing"]["infer_ms"] <= reply["server_timing"]["infer_ms"]


def test_several_at_once_are_answered_as_one_by_one(service, policy):
    messages = [request(seed) for seed in range(7)]
    del messages[2]["sensor"], messages[5]["vl_mask"]
    replies = ask(service, *messages)
    assert [reply["policy_timing"]["batch_size"] for reply in replies] == [4] * 4 + [3] * 3
    for message, reply in zip(messages, replies, strict=True):
        np.testing.assert_allclose(reply["actions"], predicted(policy, message), **TOLERANCE)


def test_a_seed_draws_what_predict_draws_with_its_key_in_any_batch():
    policy = tiny_policy("diffusion")
    service = PolicyService(policy, max_batch=4)
    service.warm_up()
    seeds = [0, 1, 2**31, 2**32 - 1]
    replies = ask(service, *[request() | {"seed": seed} for seed in seeds], request())
    for seed, reply in zip([*seeds, 0], replies, strict=True):
        expected = predicted(policy, request(), jax.random.key(seed))
        np.testing.assert_allclose(reply["actions"], expected, **TOLERANCE)
    np.testing.assert_array_equal(replies[4]["actions"], ask(service, request())[0]["actions"])
    assert np.abs(replies[0]["actions"] - replies[1]["actions"]).max() > 1e-3
    service.close()


def test_state_and_previous_chunk_reach_the_policy():
    policy = tiny_policy(z_chunk="previous", state=StateEncoderConfig((3, 4, 5), hidden_dim=4))
    service = PolicyService(policy, max_batch=1)
    state = np.array([190, 0, 60, 10, 20, 30], np.float32)
    chunk = np.full((8, 7), 0.1, np.float32)
    (reply,) = ask(service, request() | {"state": state, "previous_chunk": chunk})
    expected = predicted(policy, request(), state=state[None], z_chunk=chunk[None])
    np.testing.assert_array_equal(reply["actions"], expected)
    service.close()


@pytest.mark.parametrize("settings", [{"prefix_max": 3}, {"guided": True}], ids=["trained", "guided"])
def test_a_prefix_reaches_the_policy_in_any_batch(settings):
    policy = tiny_policy("flow", **settings)
    service = PolicyService(policy, max_batch=2)
    service.warm_up()
    prefix = np.linspace(-1, 1, 42, dtype=np.float32).reshape(6, 7)
    asked = request() | {"prefix": prefix, "prefix_length": 2}
    planned, free = ask(service, asked, request())
    lengths = {"prefix_length": np.array([2]), "plan_length": np.array([6])}
    expected = predicted(policy, request(), prefix=prefix[None], **lengths)
    np.testing.assert_allclose(planned["actions"], expected, **TOLERANCE)
    np.testing.assert_allclose(planned["actions"][:2], prefix[:2], **TOLERANCE)
    np.testing.assert_allclose(free["actions"], predicted(policy, request()), **TOLERANCE)
    assert np.abs(planned["actions"][2:] - free["actions"][2:]).max() > 1e-4
    service.close()


def test_the_age_of_the_features_reaches_the_policy():
    policy = tiny_policy(age=AgeEncoderConfig(4))
    service = PolicyService(policy, max_batch=1)
    service.warm_up()
    (reply,) = ask(service, request() | {"feature_age": 0.75})
    expected = predicted(policy, request(), feature_age=np.array([0.75], np.float32))
    np.testing.assert_array_equal(reply["actions"], expected)
    service.close()


def test_the_last_states_reach_the_policy_as_far_as_they_are_there():
    policy = tiny_policy(state_window=StateWindowConfig(tuple(range(6)), StateWindow(3), hidden_dim=4))
    service = PolicyService(policy, max_batch=1)
    window = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    mask = np.array([False, True, True])
    for given in ({}, {"state_window": window}, {"state_window": window, "state_window_mask": mask}):
        (reply,) = ask(service, request() | given)
        expected = predicted(policy, request(), **{name: value[None] for name, value in given.items()})
        np.testing.assert_array_equal(reply["actions"], expected)
    service.close()


def test_slots_that_are_left_out_are_as_those_that_are_masked():
    policy = tiny_policy(per_slot=False)
    service = PolicyService(policy, max_batch=1)
    vl = request()["vl"][:2]
    (reply,) = ask(service, {"vl": vl})
    np.testing.assert_allclose(reply["actions"], predicted(policy, {"vl": vl}), **TOLERANCE)
    service.close()


def test_nothing_is_compiled_after_the_warm_up(policy):
    service = PolicyService(policy, max_batch=3)
    service.warm_up()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if "compile" in name or "trace" in name else None
    )
    for count in (1, 2, 3, 5):
        messages = [request(seed) | {"seed": seed} for seed in range(count)]
        for message in messages[1::2]:
            del message["sensor"]
        ask(service, *messages)
    assert compiled == []
    jax.jit(lambda x: x * 3)(np.ones(5))
    assert compiled, "the listener hears"
    service.close()


def test_one_that_leads_to_no_finite_actions_is_refused_alone(service):
    absurd = request() | {"sensor": np.full_like(request()["sensor"], 3e38)}
    sound, refused, other = ask(service, request(), absurd, request(2))
    assert isinstance(refused, RequestError)
    assert "not finite" in str(refused)
    assert np.isfinite(sound["actions"]).all()
    assert np.isfinite(other["actions"]).all()


class Looking:
    """An encoder whose features are the mean colours of what it is shown."""

    def __init__(self):
        self.shown = []

    def encode_batch(self, records):
        self.shown += [
            (prompt, {view: image.size for view, image in images.items()}) for prompt, images in records
        ]
        values = np.zeros((len(records), SLOTS, WIDTH), np.float32)
        for row, (_, images) in enumerate(records):
            for image in images.values():
                values[row, :, :3] = np.asarray(image).mean(axis=(0, 1)) / 100
        return values, np.ones((len(records), SLOTS), bool)


def test_pictures_go_through_the_encoder(policy):
    encoder = Looking()
    service = PolicyService(policy, encoder, max_batch=2)
    service.warm_up()
    encoder.shown.clear()
    pixels = np.full((60, 80, 3), (20, 40, 250), np.uint8)
    sensor = request()["sensor"]
    damaged = {"prompt": "go", "images": {"View1": b"no file"}}
    reply, refused, empty = ask(
        service,
        {"prompt": "go", "images": {"View1": pixels}, "sensor": sensor},
        damaged,
        {"prompt": "stop", "images": {}},
    )
    vl = np.zeros((SLOTS, WIDTH), np.float32)
    vl[:, :3] = (0.2, 0.4, 2.5)
    np.testing.assert_allclose(reply["actions"], predicted(policy, {"vl": vl, "sensor": sensor}), **TOLERANCE)
    assert reply["policy_timing"]["encode_ms"] > 0
    assert "images/View1: no whole JPEG or PNG file" in str(refused)
    np.testing.assert_allclose(empty["actions"], predicted(policy, {"vl": 0 * vl}), **TOLERANCE)
    assert ("go", {"View1": (80, 60)}) in encoder.shown
    service.close()
