from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vla_jax.policy.policies import CHANNELS, DATA, ROWS, SLOTS, WIDTH, observations, tiny_policy
from vla_jax.contracts.observation import Observation
from vla_jax.contracts.specs import StateWindow
from vla_jax.errors import UserError
from vla_jax.models.config import AgeEncoderConfig, StateEncoderConfig, StateWindowConfig
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.policy.network import PolicyNetwork


@pytest.fixture(scope="module")
def regression():
    return tiny_policy("regression")


@pytest.fixture(scope="module")
def diffusion():
    return tiny_policy("diffusion")


def test_regression_is_the_network_between_normalisation_and_its_inverse(regression):
    inputs = observations(3)
    predicted = regression.predict(**inputs)
    normaliser, network = regression.loaded.normaliser, regression.loaded.network

    @jax.jit
    def sample(vl, vl_mask, sensor, has_sensor):
        features = normaliser.normalise_features(vl, vl_mask)
        windows = normaliser.normalise_sensor(sensor)
        return network.sample(Observation(features, vl_mask, windows, has_sensor))

    scale, offset = np.asarray(normaliser.action_scale), np.asarray(normaliser.action_offset)
    expected = np.asarray(sample(**inputs)) * scale + offset
    np.testing.assert_allclose(predicted, expected, atol=2e-6)
    assert predicted.shape == (3, 8, 7)
    assert predicted.dtype == np.float32


@pytest.mark.parametrize("name", ["regression", "diffusion"])
def test_batch_size_changes_no_prediction(name, request):
    policy = request.getfixturevalue(name)
    inputs = observations(3)
    together = policy.predict(**inputs)
    assert np.ptp(together, axis=0).max() > 1e-3  # the rows differ at all
    alone = policy.predict(**{key: value[:1] for key, value in inputs.items()})
    # Products of other batch sizes are summed in another order on some processors: the ten steps' tolerance.
    np.testing.assert_allclose(alone, together[:1], atol=3e-5)


def test_one_key_per_row_moves_with_the_row(diffusion):
    inputs = observations(3)
    keys = jax.random.split(jax.random.key(3), 3)
    together = diffusion.predict(**inputs, key=keys)
    order = np.array([2, 0, 1])
    shuffled = diffusion.predict(**{name: value[order] for name, value in inputs.items()}, key=keys[order])
    np.testing.assert_allclose(shuffled, together[order], atol=3e-5)


def test_keys_of_diffusion(diffusion):
    inputs = observations(3)
    default = diffusion.predict(**inputs)
    np.testing.assert_array_equal(default, diffusion.predict(**inputs))
    np.testing.assert_array_equal(default, diffusion.predict(**inputs, key=jax.random.key(0)))
    np.testing.assert_array_equal(default, diffusion.predict(**inputs, key=jax.random.PRNGKey(0)))
    assert np.abs(default - diffusion.predict(**inputs, key=jax.random.key(1))).max() > 1e-3


def test_rows_of_one_batch_draw_different_noise(diffusion):
    inputs = {name: np.repeat(value, 3, axis=0) for name, value in observations(1).items()}
    first, second, _ = diffusion.predict(**inputs)
    assert np.abs(first - second).max() > 1e-3


def test_compiles_once_per_batch_size(monkeypatch):
    traces = []
    original = PolicyNetwork.sample

    def counted(self, observation, **kwargs):
        traces.append(observation.vl.shape)
        return original(self, observation, **kwargs)

    monkeypatch.setattr(PolicyNetwork, "sample", counted)
    policy = tiny_policy("regression")
    policy.warm_up(2)
    assert len(traces) == 1
    inputs = observations(2)
    for seed in range(3):
        policy.predict(**observations(2, seed), key=jax.random.key(seed))
    policy.predict(
        **{**inputs, "vl": inputs["vl"].astype(np.float16), "sensor": inputs["sensor"].astype("f8")}
    )
    policy.predict(**{name: jnp.asarray(value) for name, value in inputs.items()})
    policy.predict(**{**inputs, "sensor": None})
    assert len(traces) == 1
    policy.warm_up(3)
    assert len(traces) == 2


def test_a_key_compiles_nothing_new(diffusion):
    inputs = observations(3)
    diffusion.predict(**inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyNetwork, "sample", None)  # a second trace would fail
        diffusion.predict(**inputs, key=jax.random.key(5))


def test_numpy_jax_and_half_precision_inputs_agree(regression):
    inputs = observations(3)
    inputs["vl"] = inputs["vl"].astype(np.float16)
    inputs["sensor"] = inputs["sensor"].astype(np.float16)
    expected = regression.predict(**inputs)
    given = {name: jnp.asarray(value) for name, value in inputs.items()}
    np.testing.assert_array_equal(regression.predict(**given), expected)
    wide = {**inputs, "vl": inputs["vl"].astype(np.float32), "sensor": inputs["sensor"].astype(np.float64)}
    np.testing.assert_array_equal(regression.predict(**wide), expected)


def test_absent_sensor_and_absent_slots_are_not_read(regression):
    inputs = observations(3)
    expected = regression.predict(**inputs)
    garbage = {name: value.copy() for name, value in inputs.items()}
    garbage["sensor"][~inputs["has_sensor"]] = np.nan
    garbage["vl"][~inputs["vl_mask"]] = 1e6
    np.testing.assert_array_equal(regression.predict(**garbage), expected)
    without = regression.predict(**{**inputs, "sensor": None})
    absent = regression.predict(**{**inputs, "has_sensor": np.zeros(3, bool)})
    np.testing.assert_array_equal(without, absent)
    assert np.abs(without - expected)[inputs["has_sensor"]].max() > 1e-5


def test_fusion_none_needs_no_sensor():
    policy = tiny_policy(fusion="none")
    inputs = observations(2)
    np.testing.assert_array_equal(policy.predict(**inputs), policy.predict(**{**inputs, "sensor": None}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vl": np.zeros((2, SLOTS, WIDTH + 1))}, r"vl has shape \(2, 3, 9\), expected \(2, 3, 8\)"),
        ({"vl": np.zeros((2, SLOTS + 1, WIDTH))}, r"vl has shape \(2, 4, 8\), expected \(2, 3, 8\)"),
        ({"vl_mask": np.ones(2, bool)}, r"vl_mask has shape \(2,\), expected \(2, 3\)"),
        (
            {"sensor": np.zeros((2, ROWS, CHANNELS - 1))},
            r"sensor has shape \(2, 13, 4\), expected \(2, 13, 5\)",
        ),
        ({"sensor": np.zeros((2, 2 * ROWS, CHANNELS))}, r"sensor has shape \(2, 26, 5\)"),
        ({"has_sensor": np.ones(3, bool)}, r"has_sensor has shape \(3,\), expected \(2,\)"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, r"key has shape \(3,\)"),
        ({"z_chunk": np.zeros((2, 8, 7))}, "z_chunk does not belong"),
        ({"vl": np.zeros(WIDTH)}, "vl has shape"),
    ],
)
def test_shapes_that_do_not_fit_are_named(regression, change, message):
    with pytest.raises(ValueError, match=message):
        regression.predict(**{**observations(2), **change})


def test_all_faults_are_named_at_once(regression):
    with pytest.raises(ValueError, match=r"vl_mask.*sensor.*has_sensor"):
        regression.predict(np.zeros((2, SLOTS, WIDTH)), np.ones((1, 1)), np.zeros((2, 1, 1)), np.ones(1))


def test_empty_batch_is_refused(regression):
    with pytest.raises(ValueError, match="empty"):
        regression.predict(**{name: value[:0] for name, value in observations(1).items()})


@pytest.mark.parametrize("name", ["vl", "sensor"])
def test_nothing_unfinite_reaches_the_robot(regression, name):
    inputs = observations(3)
    inputs["vl_mask"][:], inputs["has_sensor"][:] = True, True
    inputs[name][1, 0, 0] = np.nan
    with pytest.raises(ValueError, match=f"not finite, because {name} is not"):
        regression.predict(**inputs)


def test_tokens_may_be_fewer_than_configured():
    policy = tiny_policy(per_slot=False)
    inputs = observations(2)
    inputs["vl_mask"][:] = True
    inputs["vl_mask"][:, 2] = False
    shorter = {**inputs, "vl": inputs["vl"][:, :2], "vl_mask": inputs["vl_mask"][:, :2]}
    np.testing.assert_allclose(policy.predict(**shorter), policy.predict(**inputs), atol=2e-6)
    with pytest.raises(ValueError, match="vl has shape"):
        policy.predict(**{**inputs, "vl": np.zeros((2, SLOTS + 1, WIDTH))})


def test_policy_anchored_on_the_previous_chunk_adds_to_it():
    policy = tiny_policy(z_chunk="previous")
    inputs = observations(2)
    with pytest.raises(ValueError, match="z_chunk is required"):
        policy.predict(**inputs)
    offset = np.asarray(policy.loaded.normaliser.action_offset)
    chunk = np.random.default_rng(0).normal(size=(2, 8, 7)).astype(np.float32)
    moved = policy.predict(**inputs, z_chunk=chunk)
    still = policy.predict(**inputs, z_chunk=np.broadcast_to(offset, chunk.shape))  # normalised: zero
    np.testing.assert_allclose(moved - still, chunk - offset, atol=1e-5)


def test_a_policy_trained_on_its_own_target_predicts_from_zeros(regression):
    inputs = observations(3)
    policy = tiny_policy(z_chunk="target")
    np.testing.assert_array_equal(policy.predict(**inputs), regression.predict(**inputs))


def test_samplers_and_steps(diffusion):
    assert (diffusion.sampler, diffusion.sampling_steps) == ("ddim", 3)
    ancestral = tiny_policy("diffusion", sampler="ddpm")
    assert (ancestral.sampler, ancestral.sampling_steps) == ("ddpm", 10)
    inputs = observations(3)
    expected, results = diffusion.predict(**inputs), []
    for policy in (ancestral, tiny_policy("diffusion", sampler="ddim", steps=5)):
        results.append(policy.predict(**inputs))
        assert np.isfinite(results[-1]).all()
        assert np.abs(results[-1] - expected).max() > 1e-4
    assert np.abs(results[0] - results[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("regression", {"steps": 4}, "no sampler"),
        ("regression", {"sampler": "ddim"}, "no sampler"),
        ("diffusion", {"sampler": "euler"}, "euler"),
        ("diffusion", {"steps": 0}, "between 1 and the 10"),
        ("diffusion", {"steps": 11}, "between 1 and the 10"),
    ],
)
def test_samplers_that_do_not_fit(head, options, message):
    with pytest.raises(UserError, match=message):
        tiny_policy(head, **options)


def test_missing_checkpoint_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        InsertionPolicy.from_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no checkpoint"):
        InsertionPolicy.from_checkpoint(tmp_path)


def test_examples_fit(regression):
    example = regression.example(3)
    assert example.vl.shape == (3, SLOTS, WIDTH)
    assert example.sensor.shape == (3, ROWS, CHANNELS)
    regression.infer(example)


def test_an_observation_gives_what_its_parts_give(regression):
    inputs = observations(3)
    chunk = np.full((3, 8, 7), np.nan, np.float32)  # not read
    observation = Observation(**inputs, previous_chunk=chunk)
    np.testing.assert_array_equal(regression.infer(observation), regression.predict(**inputs))


@pytest.mark.parametrize("no_sensor_embedding", [True, False], ids=["learned vector", "zeros"])
def test_a_policy_trained_without_sensor_acts_as_where_it_is_missing(no_sensor_embedding):
    """Whatever window is given, of whatever shape."""
    options = {"no_sensor_embedding": no_sensor_embedding}
    without = tiny_policy(data=replace(DATA, sensor=None), **options)
    inputs = observations(3)
    absent = tiny_policy(**options).predict(**{**inputs, "sensor": None})
    np.testing.assert_allclose(without.predict(**{**inputs, "sensor": None}), absent, atol=1e-6)
    np.testing.assert_allclose(without.predict(**inputs), absent, atol=1e-6)
    np.testing.assert_allclose(without.infer(without.example(3)), without.infer(without.example(3)))
    assert without.sensor_window is None


def test_differences_name_everything_that_does_not_fit(regression):
    data, features = regression.data, regression.features
    assert regression.differences(data, features) == []
    other = replace(data, views=("View2",), sensor=replace(data.sensor, window=7), alignment="index")
    faults = regression.differences(other, replace(features, width=9))
    assert [fault.split(" is ")[0] for fault in faults] == ["views", "sensor window", "feature width"]
    blind = tiny_policy(fusion="none")
    assert blind.differences(replace(data, sensor=replace(data.sensor, window=7)), features) == []


@pytest.fixture(scope="module")
def proprioceptive():
    return tiny_policy(state=StateEncoderConfig(columns=(3, 4, 5), hidden_dim=8))


def test_the_state_is_read_where_the_policy_reads_it(proprioceptive, regression):
    inputs = observations(3)
    state = np.tile(np.array([190.0, 0.0, 65.0, 1.0, -2.0, 3.0], np.float32), (3, 1))
    acted = proprioceptive.predict(**inputs, state=state)
    moved, turned, tilted = (state + np.array(change, np.float32) for change in (
        [5, 5, 5, 0, 0, 0], [0, 0, 0, 360, 0, -360], [0, 0, 0, 0, 2, 0]
    ))  # fmt: skip
    np.testing.assert_array_equal(proprioceptive.predict(**inputs, state=moved), acted)
    np.testing.assert_allclose(proprioceptive.predict(**inputs, state=turned), acted, atol=1e-4)
    assert np.abs(proprioceptive.predict(**inputs, state=tilted) - acted).max() > 1e-2
    # What a policy does not read may be there all the same.
    np.testing.assert_array_equal(regression.predict(**inputs, state=state), regression.predict(**inputs))
    assert proprioceptive.state_values == ("a", "b", "r")
    assert regression.state_values == ()


def test_a_state_that_is_missing_of_another_arm_or_not_finite_is_refused(proprioceptive):
    inputs = observations(2)
    with pytest.raises(ValueError, match="reads the arm's a, b, r"):
        proprioceptive.predict(**inputs)
    with pytest.raises(ValueError, match=r"state has shape \(2, 7\), expected \(2, 6\)"):
        proprioceptive.predict(**inputs, state=np.zeros((2, 7)))
    with pytest.raises(ValueError, match="because state is not"):
        proprioceptive.predict(**inputs, state=np.full((2, 6), np.nan))
    proprioceptive.infer(proprioceptive.example(2))


def test_another_arm_s_state_is_a_difference_for_a_policy_that_reads_it(proprioceptive, regression):
    joints = replace(DATA, state=tuple(f"joint_{i}" for i in range(6)))
    (fault,) = proprioceptive.differences(joints, proprioceptive.features)
    assert fault.startswith("the arm's state is joint_0")
    assert regression.differences(joints, regression.features) == []


@pytest.fixture(scope="module")
def told():
    return tiny_policy(age=AgeEncoderConfig(hidden_dim=8))


def test_the_age_of_the_features_reaches_the_actions_row_by_row(told):
    inputs = observations(3)
    acted = told.predict(**inputs, feature_age=np.array([0.1, 0.4, 0.4]))
    other = told.predict(**inputs, feature_age=np.array([0.1, 0.4, 1.5]))
    np.testing.assert_array_equal(other[:2], acted[:2])
    assert np.abs(other[2] - acted[2]).max() > 1e-3
    # Nothing is made of ages that no training shows: they count as the largest it does, and those below 0 as 0.
    longest, shortest, beyond = (
        told.predict(**inputs, feature_age=np.array(ages))
        for ages in ([3.0] * 3, [0.0] * 3, [60.0, -5.0, 3.0])
    )
    np.testing.assert_array_equal(beyond[[0, 2]], longest[[0, 2]])
    np.testing.assert_array_equal(beyond[1], shortest[1])


def test_an_age_that_is_missing_or_that_nobody_wants_is_refused(told, regression):
    inputs = observations(2)
    with pytest.raises(ValueError, match="feature_age is required"):
        told.predict(**inputs)
    with pytest.raises(ValueError, match=r"feature_age has shape \(\), expected \(2,\)"):
        told.predict(**inputs, feature_age=0.4)
    with pytest.raises(ValueError, match="because feature_age is not"):
        told.predict(**inputs, feature_age=np.array([0.4, np.nan]))
    with pytest.raises(ValueError, match="not told how old its features are"):
        regression.predict(**inputs, feature_age=np.array([0.4, 0.4]))
    # An observation may hold what a policy does not read.
    regression.infer(Observation(**inputs, feature_age=np.array([0.4, 0.4], np.float32)))
    told.infer(told.example(2))


def test_features_without_an_age_are_a_difference_for_a_policy_that_is_told_it(told, regression):
    indexed = replace(DATA, alignment="index")
    (fault,) = told.differences(indexed, told.features)
    assert fault.startswith("pictures are paired by index and have no age")
    assert regression.differences(indexed, regression.features) == []


@pytest.fixture(scope="module")
def moving():
    return tiny_policy(state_window=StateWindowConfig(tuple(range(6)), StateWindow(4), hidden_dim=8))


def walk(batch, seed=3):
    steps = np.random.default_rng(seed).normal(size=(batch, 4, 6)) * 0.3
    return np.cumsum(steps, axis=1) + np.array([190.0, 0.0, 60.0, 0.0, 179.0, -179.0])


def test_how_the_arm_has_moved_is_read_and_not_where_it_is(moving, regression):
    inputs, window = observations(3), walk(3)
    acted = moving.predict(**inputs, state_window=window)
    elsewhere = window + np.array([40.0, -7.0, 3.0, 20.0, 360.0, -360.0])
    np.testing.assert_allclose(moving.predict(**inputs, state_window=elsewhere), acted, atol=2e-4)
    other = window.copy()
    other[1, 0, 2] += 1.0
    changed = moving.predict(**inputs, state_window=other)
    np.testing.assert_array_equal(changed[[0, 2]], acted[[0, 2]])
    assert np.abs(changed[1] - acted[1]).max() > 1e-3
    np.testing.assert_array_equal(
        regression.predict(**inputs, state_window=window), regression.predict(**inputs)
    )
    assert moving.state_window == StateWindow(4)
    assert regression.state_window is None


def test_last_states_that_are_missing_are_not_read(moving):
    inputs, window = observations(3), walk(3)
    mask = np.array([[False, False, True, True], [True] * 4, [True] * 4])
    acted = moving.predict(**inputs, state_window=window, state_window_mask=mask)
    hidden = window.copy()
    hidden[0, :2] = np.nan
    np.testing.assert_array_equal(
        moving.predict(**inputs, state_window=hidden, state_window_mask=mask), acted
    )
    whole = moving.predict(**inputs, state_window=window)
    np.testing.assert_array_equal(whole[1:], acted[1:])
    assert np.abs(whole[0] - acted[0]).max() > 1e-3
    # Without any, and without the newest, which the others are relative to: the same as none.
    none = moving.predict(**inputs)
    without_newest = np.array([[True, True, True, False]] * 3)
    for given in ({"state_window_mask": np.zeros((3, 4), bool)}, {"state_window_mask": without_newest}):
        np.testing.assert_array_equal(moving.predict(**inputs, state_window=window, **given), none)
    assert np.abs(none - whole).max() > 1e-3


def test_last_states_of_another_shape_or_not_finite_are_refused(moving):
    inputs = observations(2)
    with pytest.raises(ValueError, match=r"state_window has shape \(2, 3, 6\), expected \(2, 4, 6\)"):
        moving.predict(**inputs, state_window=walk(2)[:, 1:])
    with pytest.raises(ValueError, match=r"state_window_mask has shape \(2, 3\), expected \(2, 4\)"):
        moving.predict(**inputs, state_window=walk(2), state_window_mask=np.ones((2, 3), bool))
    with pytest.raises(ValueError, match="because state_window is not"):
        moving.predict(**inputs, state_window=np.full((2, 4, 6), np.inf))
    joints = replace(DATA, state=tuple(f"joint_{i}" for i in range(6)))
    (fault,) = moving.differences(joints, moving.features)
    assert fault.startswith("the arm's state is joint_0")
    moving.infer(moving.example(2))
