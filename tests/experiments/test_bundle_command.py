"""The command `bundle`: from a run to a folder that predicts the same."""

import jax
import numpy as np

from tests.calls import call_here
from tests.vla_jax.policy.policies import loaded_policy, observations, policy_config
from vla_jax.bundle.run import load
from vla_jax.policy.artifact import save_policy
from vla_jax.policy.insertion_policy import InsertionPolicy


def test_a_run_becomes_a_bundle_that_predicts_the_same(tmp_path):
    artifact = loaded_policy(policy_config("diffusion"))
    save_policy(tmp_path / "run", artifact.network, artifact.normaliser, artifact.metadata)
    done = call_here("bundle", tmp_path / "run", tmp_path / "bundle", "--sampler", "ddpm")
    assert done.returncode == 0, done.stderr
    assert "diffusion policy of" in done.stdout
    assert f"try it with: python {tmp_path / 'bundle' / 'run.py'}" in done.stdout
    policy = InsertionPolicy.from_checkpoint(tmp_path / "run", sampler="ddpm")
    inputs, key = observations(1), jax.random.key(3)
    predicted = load(tmp_path / "bundle").predict(**inputs, key=key)
    np.testing.assert_allclose(predicted, policy.predict(**inputs, key=key), rtol=0, atol=1e-6)
