"""A bundle predicts what the policy predicts that it was made of, whatever the policy reads and draws."""

from dataclasses import replace

import jax
import jax.export
import numpy as np
import pytest

from tests.vla_jax.policy.policies import (
    DATA,
    SLOTS,
    WIDTH,
    loaded_policy,
    observations,
    policy_config,
    tiny_policy,
)
from vla_jax.bundle.run import PROGRAMS, load
from vla_jax.bundle.writing import write_bundle
from vla_jax.contracts.observation import Observation
from vla_jax.contracts.specs import StateWindow
from vla_jax.heads.minimal_iterative import MinimalIterativeConfig
from vla_jax.models.config import AgeEncoderConfig, StateEncoderConfig, StateWindowConfig
from vla_jax.policy.insertion_policy import InsertionPolicy

CHUNK = np.random.default_rng(5).normal(size=(3, 8, 7)).astype(np.float32)
STATE = np.tile(np.array([190.0, 0.0, 65.0, 1.0, -2.0, 3.0], np.float32), (3, 1))
READS_STATE = {"state": StateEncoderConfig(columns=(3, 4, 5), hidden_dim=8)}
KEY = jax.random.key(5)
TWO_PASSES = MinimalIterativeConfig(hidden_dim=16, num_layers=1, num_heads=2)


def bundled(policy, folder):
    write_bundle(policy, folder / "bundle")
    return load(folder / "bundle", batch_size=3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A regression policy's bundle."""
    return bundled(tiny_policy(), tmp_path_factory.mktemp("plain"))


def check(policy, bundle, batch=3, **given):
    """Compares at one call; names are those of `Observation`."""
    key = given.pop("key", None)
    inputs = {
        name: None if value is None else value[:batch] for name, value in (observations(3) | given).items()
    }
    expected = policy.infer(Observation(**inputs), key=key)
    np.testing.assert_allclose(bundle.predict(**inputs, key=key), expected, rtol=0, atol=1e-6)
    return expected


POLICIES = {
    "regression": lambda: tiny_policy(**READS_STATE),
    "diffusion": lambda: tiny_policy("diffusion", "gated", sampler="ddpm"),
    "flow": lambda: tiny_policy("flow", "cross_attention", data=replace(DATA, sensor=None)),
    "minimal iterative": lambda: InsertionPolicy(loaded_policy(replace(policy_config(), head=TWO_PASSES))),
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_bundle_predicts_what_its_policy_predicts(name, tmp_path):
    policy = POLICIES[name]()
    bundle = bundled(policy, tmp_path)
    check(policy, bundle, state=STATE, key=KEY)
    check(policy, bundle, state=STATE, sensor=None, has_sensor=None)


@pytest.fixture(scope="module")
def drawing(tmp_path_factory):
    """A policy that draws, of which vision is all, and its bundle."""
    policy = tiny_policy("diffusion", "none")
    return policy, bundled(policy, tmp_path_factory.mktemp("drawing"))


def test_keys_are_the_policy_s(drawing):
    by_default = check(*drawing)
    other = check(*drawing, key=KEY)
    assert np.abs(by_default - other).max() > 1e-3
    check(*drawing, key=jax.random.PRNGKey(7))
    check(*drawing, key=jax.random.split(KEY, 3))


def test_a_single_row_has_a_program_of_its_own(drawing):
    check(*drawing, batch=1, key=KEY)


def test_promised_actions_are_given_as_to_the_policy(tmp_path):
    policy = tiny_policy("flow", prefix_max=3)
    bundle = bundled(policy, tmp_path)
    alone = check(policy, bundle)
    begun = check(policy, bundle, prefix=CHUNK[:, :2])
    np.testing.assert_array_equal(begun[:, :2], CHUNK[:, :2])
    assert np.abs(alone - begun)[:, 2:].max() > 1e-4
    check(policy, bundle, prefix=CHUNK, prefix_length=np.array([3, 0, 1]))
    with pytest.raises(ValueError, match=r"prefix_length is \[4, 4, 4\], each must be from 0 to 3"):
        bundle.predict(**observations(3), prefix=CHUNK[:, :4])


def test_ages_and_last_poses_are_given_as_to_the_policy(tmp_path):
    window = StateWindowConfig(tuple(range(6)), StateWindow(3), hidden_dim=4)
    policy = tiny_policy(age=AgeEncoderConfig(4), state_window=window)
    bundle = bundled(policy, tmp_path)
    old = {"feature_age": np.array([0.1, 0.8, 1.5], np.float32)}
    still = check(policy, bundle, **old)
    poses = np.random.default_rng(6).normal(size=(3, 3, 6)).astype(np.float32)
    moved = check(policy, bundle, **old, state_window=poses)
    some = check(
        policy, bundle, **old, state_window=poses, state_window_mask=np.arange(9).reshape(3, 3) % 2 == 0
    )
    assert min(np.abs(still - moved).max(), np.abs(moved - some).max()) > 1e-4
    with pytest.raises(ValueError, match="feature_age is required"):
        bundle.predict(**observations(3))


def test_a_guided_policy_stays_guided(tmp_path):
    policy = tiny_policy("diffusion", guided=True)
    bundle = bundled(policy, tmp_path)
    given = {"prefix": CHUNK[:, :6], "prefix_length": np.array([2, 1, 0])}
    some = check(policy, bundle, **given)
    more = check(policy, bundle, **given, plan_length=np.array([6, 5, 4]))
    assert np.abs(some - more).max() > 1e-4
    with pytest.raises(ValueError, match=r"plan_length is .*each must be from prefix_length to 8"):
        bundle.predict(**observations(3), **given, plan_length=np.array([9, 5, 4]))


def test_a_policy_that_adds_to_the_past_needs_it(tmp_path):
    policy = tiny_policy(z_chunk="previous")
    bundle = bundled(policy, tmp_path)
    check(policy, bundle, previous_chunk=CHUNK)
    with pytest.raises(ValueError, match="previous_chunk is required"):
        bundle.predict(**observations(3))


def test_slots_may_lack_where_the_policy_reads_tokens(plain, tmp_path):
    policy = tiny_policy(per_slot=False)
    bundle = bundled(policy, tmp_path)
    inputs = observations(3)
    shorter = {**inputs, "vl": inputs["vl"][:, :2], "vl_mask": inputs["vl_mask"][:, :2]}
    np.testing.assert_allclose(bundle.predict(**shorter), policy.predict(**shorter), atol=2e-6)
    with pytest.raises(ValueError, match=r"vl has shape \(3, 2, 8\), expected \(3, 3, 8\)"):
        plain.predict(**shorter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vl": np.zeros((2, SLOTS, WIDTH + 1))}, r"vl has shape \(2, 3, 9\), expected \(2, 3, 8\)"),
        ({"vl": np.float32(3)}, "vl has shape .*the batch is empty"),
        ({"vl_mask": None}, "vl_mask is required"),
        ({"sensr": np.zeros(3)}, "sensr is unknown"),
        (
            {"sensor": np.zeros((2, 1, 1)), "has_sensor": np.ones(1)},
            r"sensor has shape.*has_sensor has shape",
        ),
        ({"key": jax.random.split(jax.random.key(0), 3)}, r"key has shape \(3, 2\), expected \(2, 2\)"),
        ({"vl": np.full((2, SLOTS, WIDTH), np.nan), "vl_mask": np.ones((2, SLOTS))}, "not finite"),
    ],
)
def test_inputs_that_do_not_fit_are_named(plain, change, message):
    with pytest.raises(ValueError, match=message):
        plain.predict(**{**observations(2), **change})


def test_what_is_not_read_may_be_there(plain):
    inputs = observations(2)
    np.testing.assert_array_equal(plain.predict(**inputs, state=STATE[:2]), plain.predict(**inputs))
    assert plain.predict(**plain.example(2)).shape == (2, 8, 7)


def test_the_programs_are_for_processors_and_gpus_and_hold_no_weights(tmp_path):
    """A program of four times the width is hardly larger."""
    sizes = {}
    for width in (16, 64):
        config = policy_config()
        config = replace(config, head=replace(config.head, hidden_dim=width))
        write_bundle(InsertionPolicy(loaded_policy(config)), tmp_path / str(width))
        for name in PROGRAMS.values():
            content = (tmp_path / str(width) / name).read_bytes()
            assert jax.export.deserialize(bytearray(content)).platforms == ("cpu", "cuda")
            sizes[width, name] = len(content)
    for name in PROGRAMS.values():
        assert sizes[64, name] < 1.05 * sizes[16, name]
