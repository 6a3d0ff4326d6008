"""A run's normaliser: of the training episodes alone, and the same until the run ends."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.vla_jax.evaluation.workspace import make_workspace
from tests.vla_jax.training.test_loop import debug_config, run
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.policy.artifact import load_policy
from vla_jax.training.starting_point import fit_normaliser


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("normaliser"))


def test_feature_moments_are_of_the_training_records_alone(workspace):
    config = debug_config(workspace)
    dataset, features = workspace.dataset, workspace.features
    records = np.unique(dataset.record_index(dataset.sample_ticks("train")))
    values, mask = features.gather(records)
    counts = mask[..., None].astype(np.float64)
    mean = (values * counts).sum(0) / counts.sum(0)
    normaliser = fit_normaliser(config, dataset, features)
    np.testing.assert_allclose(normaliser.feature_offset, mean, atol=1e-5)
    others = np.unique(dataset.record_index(dataset.sample_ticks("all")))
    assert np.abs(features.gather(others)[0].astype(np.float64).mean(0) - mean).max() > 1e-3


def test_a_resumed_run_keeps_its_normaliser_whatever_the_statistics_say_now(workspace, tmp_path):
    config = debug_config(workspace, steps=2, checkpoint_every=2, validate_every=2)
    run(workspace, tmp_path, config)
    before = load_policy(tmp_path)
    changed = PackedDataset.open(workspace.dataset.path)
    actions = changed.statistics["actions"]
    changed.statistics["actions"] = dataclasses.replace(actions, mean=actions.mean + 1, std=actions.std * 3)
    run(
        dataclasses.replace(workspace, dataset=changed),
        tmp_path,
        dataclasses.replace(config, steps=4),
        resume=True,
    )
    after = load_policy(tmp_path)
    assert (before.metadata.step, after.metadata.step) == (2, 4)
    for old, new in zip(jax.tree.leaves(before.normaliser), jax.tree.leaves(after.normaliser), strict=True):
        np.testing.assert_array_equal(new, old)
