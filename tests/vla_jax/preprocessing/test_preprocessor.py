"""Between recorded units and the network's: what is normalised, what stays, and the way back."""

import jax.numpy as jnp
import numpy as np

from tests.vla_jax.policy.policies import loaded_policy, observations, policy_config
from vla_jax.contracts.observation import Observation
from vla_jax.models.resample import resample
from vla_jax.preprocessing.preprocessor import Preprocessor

NORMALISER = loaded_policy(policy_config()).normaliser


def test_everything_that_was_recorded_is_scaled_and_masks_stay():
    chunk = np.random.default_rng(0).normal(size=(3, 8, 7)).astype(np.float32)
    recorded = Observation(**observations(3), previous_chunk=chunk)
    seen = Preprocessor(NORMALISER).observe(recorded)
    features = (recorded.vl - np.asarray(NORMALISER.feature_offset)[None]) / np.asarray(
        NORMALISER.feature_scale
    )
    np.testing.assert_allclose(seen.vl, np.where(recorded.vl_mask[..., None], features, 0), rtol=1e-5)
    np.testing.assert_allclose(seen.sensor[..., 0], (recorded.sensor[..., 0] - 0.5) / 2, rtol=1e-5)
    np.testing.assert_array_equal(seen.previous_chunk, Preprocessor(NORMALISER).encode_actions(chunk))
    assert seen.vl_mask is recorded.vl_mask
    assert seen.has_sensor is recorded.has_sensor


def test_averages_are_those_that_the_encoder_would_take():
    rng = np.random.default_rng(0)
    inputs = observations(3) | {"sensor": rng.normal(size=(3, 12, 1026)).astype(np.float16)}
    whole = Preprocessor(NORMALISER).observe(Observation(**inputs)).sensor
    for num in (3, 12, 5):
        seen = Preprocessor(NORMALISER, num).observe(Observation(**inputs)).sensor
        # Parts that are not equal are the encoder's to average.
        assert seen.shape[1] == (12 if num == 5 else num)
        np.testing.assert_allclose(resample(seen, num, "area"), resample(whole, num, "area"), atol=1e-5)


def test_what_is_absent_stays_absent():
    inputs = observations(3)
    seen = Preprocessor(NORMALISER).observe(Observation(inputs["vl"], inputs["vl_mask"]))
    assert seen.sensor is seen.has_sensor is seen.previous_chunk is None


def test_actions_come_back():
    actions = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 7)), jnp.float32)
    preprocessor = Preprocessor(NORMALISER)
    np.testing.assert_allclose(
        preprocessor.decode_actions(preprocessor.encode_actions(actions)), actions, atol=1e-6
    )
