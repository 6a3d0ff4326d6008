"""A residual beside its policy: what it does to actions, and which checkpoint it is for."""

import dataclasses
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from tests.vla_jax.policy.policies import CHANNELS, ROWS, loaded_policy, policy_config, tiny_policy
from tests.vla_jax.policy.residuals import residual_config, residual_network, residual_of
from vla_jax.errors import UserError
from vla_jax.policy.artifact import load_policy, save_policy
from vla_jax.policy.residual import (
    CheckpointIdentity,
    ErrorByChunkAge,
    ResidualMetadata,
    load_residual,
    read_residual_metadata,
    save_residual,
)

GRIPPER = 6


def inputs(batch=4):
    rng = np.random.default_rng(2)
    return {
        "actions": rng.normal(size=(batch, 7)).astype(np.float32),
        "chunk_ages": np.arange(batch, dtype=float),
        "sensor": (50 + 30 * rng.normal(size=(batch, ROWS, CHANNELS))).astype(np.float32),
        "has_sensor": np.ones(batch, bool),
    }


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


def test_the_correction_is_the_network_s_in_the_policy_s_units(policy):
    given, normaliser = inputs(), policy.loaded.normaliser
    network = residual_network(residual_config(policy))
    scale = np.asarray(normaliser.action_scale)
    windows = given["sensor"] - np.pad(
        given["sensor"][..., 1:].mean(axis=(1, 2))[:, None, None] * np.ones((1, 1, CHANNELS - 1)),
        ((0, 0), (0, 0), (1, 0)),
    )
    windows[..., 0] = (windows[..., 0] - 0.5) / 2.0
    windows[..., 1:] /= 30.0
    normalised = (given["actions"] - np.asarray(normaliser.action_offset)) / scale
    arrays = (windows, given["has_sensor"], normalised, given["chunk_ages"])
    added = network(*(jnp.asarray(each, bool if each.dtype == bool else jnp.float32) for each in arrays))
    corrected = residual_of(policy).correct(**given)
    np.testing.assert_allclose(corrected, given["actions"] + scale * np.asarray(added), rtol=1e-3, atol=1e-4)
    assert corrected.dtype == np.float32


def test_an_untrained_residual_changes_no_bit(policy):
    given = inputs()
    given["actions"][0] = -0.0
    corrected = residual_of(policy, is_random=False).correct(**given)
    assert corrected.tobytes() == given["actions"].tobytes()


def test_rows_without_a_sensor_and_those_that_hold_the_arm_come_back_as_they_are(policy):
    given, residual = inputs(), residual_of(policy)
    given["has_sensor"][1] = False
    given["sensor"][1] = np.nan
    given["chunk_ages"][2] = np.nan
    corrected = residual.correct(**given)
    np.testing.assert_array_equal(corrected[1:3], given["actions"][1:3])
    assert (np.abs(corrected - given["actions"])[[0, 3]] > 0).any(axis=1).all()
    assert residual.correct(**given | {"sensor": None, "has_sensor": np.zeros(4, bool)}) is given["actions"]


def test_a_window_that_is_not_finite_gives_no_action_that_could_be_executed(policy):
    given = inputs()
    given["sensor"][0, 0, 0] = np.nan
    corrected = residual_of(policy).correct(**given)
    assert not np.isfinite(corrected[0]).any()
    assert np.isfinite(corrected[1:]).all()


def test_a_constant_dimension_stays_constant():
    loaded = loaded_policy(policy_config())
    constant = loaded.normaliser.action_scale.at[GRIPPER].set(0.0)
    policy = tiny_policy()
    policy.loaded = dataclasses.replace(
        loaded, normaliser=dataclasses.replace(loaded.normaliser, action_scale=constant)
    )
    given = inputs()
    corrected = residual_of(policy).correct(**given)
    np.testing.assert_array_equal(corrected[:, GRIPPER], given["actions"][:, GRIPPER])


def test_nothing_is_compiled_again_after_warming_up(policy):
    residual = residual_of(policy)
    residual.warm_up(4)
    for _ in range(2):
        residual.correct(**inputs())
    assert residual._compiled._cache_size() == 1


# --- beside a checkpoint ---


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, the first with a residual."""
    root = tmp_path_factory.mktemp("runs")
    for name, seed in (("run", 0), ("other", 1)):
        policy = loaded_policy(policy_config(), seed=seed)
        save_policy(root / name, policy.network, policy.normaliser, policy.metadata)
    save(load_policy(root / "run"))
    return root


def save(loaded, *, is_random=True):
    config = residual_config(tiny_policy())
    metadata = ResidualMetadata(
        config, CheckpointIdentity.of(loaded), {"seed": 3}, (ErrorByChunkAge(0, 5, 2.0, 1.0),)
    )
    return save_residual(loaded.path, residual_network(config, is_random=is_random), metadata)


def test_what_was_saved_is_restored_beside_a_copy_of_its_run_too(runs, tmp_path):
    shutil.copytree(runs / "run", tmp_path / "copy")
    expected = residual_of(tiny_policy()).correct(**inputs())
    for run in (runs / "run", tmp_path / "copy", tmp_path / "copy" / "checkpoints" / "7"):
        np.testing.assert_array_equal(load_residual(load_policy(run)).correct(**inputs()), expected)
    metadata = read_residual_metadata(runs / "run" / "residual")
    assert metadata.held_out == (ErrorByChunkAge(0, 5, 2.0, 1.0),)
    assert (metadata.checkpoint.step, metadata.training) == (7, {"seed": 3})
    assert sorted(path.name for path in (runs / "run").iterdir()) == ["checkpoints", "residual"]


def test_another_one_takes_its_place(runs, tmp_path):
    shutil.copytree(runs / "run", tmp_path / "run")
    loaded = load_policy(tmp_path / "run")
    save(loaded, is_random=False)
    np.testing.assert_array_equal(load_residual(loaded).correct(**inputs()), inputs()["actions"])


def test_beside_another_checkpoint_it_is_refused(runs, tmp_path):
    shutil.copytree(runs / "other", tmp_path / "other")
    with pytest.raises(UserError, match=r"other has no residual; train one with: .*train_residual"):
        load_residual(load_policy(tmp_path / "other"))
    # Of the same step, with other weights.
    shutil.copytree(runs / "run" / "residual", tmp_path / "other" / "residual")
    with pytest.raises(UserError, match=r"corrects another checkpoint \(step 7\)"):
        load_residual(load_policy(tmp_path / "other"))
    # Of the same run, at another step.
    shutil.copytree(runs / "run", tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "7").rename(tmp_path / "run" / "checkpoints" / "8")
    shutil.copytree(runs / "other" / "checkpoints" / "7", tmp_path / "run" / "checkpoints" / "9")
    load_residual(load_policy(tmp_path / "run" / "checkpoints" / "8"))  # The same bytes by another name.
    with pytest.raises(UserError, match="corrects another checkpoint"):
        load_residual(load_policy(tmp_path / "run"))


@pytest.mark.parametrize("file", ["metadata/data.json", "SHA256SUMS"])
def test_a_damaged_one_is_named(runs, tmp_path, file):
    shutil.copytree(runs / "run", tmp_path / "run")
    damaged = tmp_path / "run" / "residual" / file
    damaged.write_bytes(damaged.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"residual is damaged \(.*; train it again"):
        load_residual(load_policy(tmp_path / "run"))
