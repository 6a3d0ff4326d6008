import dataclasses
import logging
import shutil

import pytest

from tests.vla_jax.evaluation.workspace import (
    export_features,
    make_workspace,
    other_provenance,
    policy_config,
    save_run,
)
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.evaluation.compatibility import check_compatible, open_matching_features
from vla_jax.policy.artifact import load_policy
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.policy.metadata import unknown_data


@pytest.fixture(scope="module")
def policy(regression_run):
    return InsertionPolicy(load_policy(regression_run))


def trained_on(policy, *, data=None, features=None):
    """The policy, trained on something else."""
    metadata = policy.loaded.metadata
    metadata = dataclasses.replace(
        metadata, data=data or metadata.data, features=features or metadata.features
    )
    return InsertionPolicy(dataclasses.replace(policy.loaded, metadata=metadata))


def test_the_trained_features_are_found_among_others(policy, workspace, tmp_path):
    cache = tmp_path / "cache"
    for provenance in (other_provenance(backbone="d" * 64), other_provenance(adapter="a" * 64)):
        export_features(workspace.dataset, cache, provenance)
    shutil.copytree(workspace.cache, cache, dirs_exist_ok=True)
    features = open_matching_features(policy, workspace.dataset, cache)
    assert features.name == workspace.features.name
    check_compatible(policy, workspace.dataset, features)


def test_a_moved_backbone_is_the_same_backbone(policy, workspace, tmp_path):
    export_features(workspace.dataset, tmp_path, other_provenance(backbone_name="elsewhere"))
    assert open_matching_features(policy, workspace.dataset, tmp_path).name == workspace.features.name


def test_features_of_another_provenance_are_refused_with_what_differs(policy, workspace, tmp_path):
    export_features(workspace.dataset, tmp_path, other_provenance(backbone="d" * 64, chat_template="e" * 64))
    export_features(workspace.dataset, tmp_path, other_provenance(adapter="a" * 64))
    with pytest.raises(UserError, match=r"adapter is 'a+', the policy's None") as error:
        open_matching_features(policy, workspace.dataset, tmp_path)
    assert "backbone is" not in str(error.value)  # the closest kind is described, not the other


def test_missing_cache_and_missing_features(policy, workspace, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        open_matching_features(policy, workspace.dataset, tmp_path / "nowhere")
    more = make_workspace(tmp_path / "more", instruction="another prompt")
    with pytest.raises(UserError, match=r"have no features.*experiments\.export"):
        open_matching_features(policy, more.dataset, workspace.cache)


def test_an_imported_policy_takes_the_features_there_are(policy, workspace):
    features = dataclasses.replace(policy.features, provenance=None)
    imported = trained_on(policy, data=unknown_data(policy.config), features=features)
    features = open_matching_features(imported, workspace.dataset, workspace.cache)
    check_compatible(imported, workspace.dataset, features)


@pytest.mark.parametrize(
    ("changes", "actions", "sensor", "message"),
    [
        ({"views": ("View1", "View3")}, {}, {}, "views is View1, View2, the policy's is View1, View3"),
        ({}, {"rate_hz": 5.0}, {}, "action rate_hz is 10.0, the policy's is 5.0"),
        ({}, {"horizon": 4}, {}, "action horizon is 8, the policy's is 4"),
        ({}, {}, {"window": 650}, "sensor window is 65, the policy's is 650"),
        ({}, {}, {"channels": 10}, "sensor channels is 1026, the policy's is 10"),
        ({}, {"rate_hz": 5.0}, {"hz": 100.0}, "action rate_hz.*; sensor hz"),
    ],
)
def test_data_that_mean_something_else_are_refused(policy, workspace, changes, actions, sensor, message):
    data = dataclasses.replace(
        policy.data,
        actions=dataclasses.replace(policy.data.actions, **actions),
        sensor=dataclasses.replace(policy.data.sensor, **sensor),
        **changes,
    )
    with pytest.raises(UserError, match=message) as error:
        check_compatible(trained_on(policy, data=data), workspace.dataset, workspace.features)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 48}, "feature width is 6, the policy's is 48"),
        ({"num_slots": 5}, "num_slots is 9, the policy's is 5"),
        ({"num_slots": 21}, "num_slots is 9, the policy's is 21"),
    ],
)
def test_features_of_another_shape_are_refused(policy, workspace, changes, message):
    other = trained_on(policy, features=dataclasses.replace(policy.features, **changes))
    with pytest.raises(UserError, match=message):
        check_compatible(other, workspace.dataset, workspace.features)


def test_the_sensor_does_not_matter_to_policies_that_do_not_read_it(workspace, tmp_path):
    run = save_run(workspace, tmp_path, policy_config(workspace, fusion="none"))
    blind = InsertionPolicy(load_policy(run))
    sensor = dataclasses.replace(blind.data.sensor, channels=10)
    other = trained_on(blind, data=dataclasses.replace(blind.data, sensor=sensor))
    check_compatible(other, workspace.dataset, workspace.features)


def test_another_alignment_is_a_warning(policy, workspace, caplog):
    other = trained_on(policy, data=dataclasses.replace(policy.data, alignment="index"))
    with caplog.at_level(logging.WARNING):
        check_compatible(other, workspace.dataset, workspace.features)
    assert "aligned by index" in caplog.text


def test_a_copy_of_the_data_elsewhere_fits(workspace, tmp_path):
    run = save_run(workspace, tmp_path / "run")
    shutil.copytree(workspace.data, tmp_path / "copy")
    copy = PackedDataset.open(tmp_path / "copy")
    policy = InsertionPolicy(load_policy(run))
    check_compatible(policy, copy, open_matching_features(policy, copy, workspace.cache))
