import dataclasses
import logging
import shutil

import pytest

from tests.vla_jax.evaluation.workspace import export_features, make_workspace, other_provenance, save_run
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.errors import UserError
from vla_jax.evaluation.compatibility import check_compatible, open_matching_features
from vla_jax.training.checkpoint import RunIdentity, load_policy


@pytest.fixture(scope="module")
def loaded(regression_run):
    return load_policy(regression_run)


def with_meta(loaded, **changes):
    data = loaded.identity.data
    identity = RunIdentity(loaded.identity.features, {**data, "meta": {**data["meta"], **changes}})
    return dataclasses.replace(loaded, identity=identity)


def with_policy(loaded, **changes):
    policy = dataclasses.replace(loaded.config.policy, **changes)
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, policy=policy))


def test_the_trained_features_are_found_among_others(loaded, workspace, tmp_path):
    cache = tmp_path / "cache"
    for provenance in (other_provenance(backbone="d" * 64), other_provenance(adapter="a" * 64)):
        export_features(workspace.dataset, cache, provenance)
    shutil.copytree(workspace.cache, cache, dirs_exist_ok=True)
    features = open_matching_features(loaded, workspace.dataset, cache)
    assert features.name == workspace.features.name
    check_compatible(loaded, workspace.dataset, features)


def test_a_moved_backbone_is_the_same_backbone(loaded, workspace, tmp_path):
    export_features(workspace.dataset, tmp_path, other_provenance(backbone_name="elsewhere"))
    assert open_matching_features(loaded, workspace.dataset, tmp_path).name == workspace.features.name


def test_features_of_another_provenance_are_refused_with_what_differs(loaded, workspace, tmp_path):
    export_features(workspace.dataset, tmp_path, other_provenance(backbone="d" * 64, chat_template="e" * 64))
    export_features(workspace.dataset, tmp_path, other_provenance(adapter="a" * 64))
    with pytest.raises(UserError, match=r"adapter is 'a+', the policy's None") as error:
        open_matching_features(loaded, workspace.dataset, tmp_path)
    assert "backbone is" not in str(error.value)  # the closest kind is described, not the other


def test_missing_cache_and_missing_features(loaded, workspace, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        open_matching_features(loaded, workspace.dataset, tmp_path / "nowhere")
    more = make_workspace(tmp_path / "more", instruction="another prompt")
    with pytest.raises(UserError, match=r"have no features.*experiments\.export"):
        open_matching_features(loaded, more.dataset, workspace.cache)


def test_an_imported_policy_takes_the_features_there_are(loaded, workspace):
    imported = dataclasses.replace(loaded, identity=RunIdentity({}, {}))
    features = open_matching_features(imported, workspace.dataset, workspace.cache)
    check_compatible(imported, workspace.dataset, features)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"views": ["View1", "View3"]},
            r"views is \['View1', 'View2'\], the policy's is \['View1', 'View3'\]",
        ),
        ({"action_hz": 5.0}, "action_hz is 10.0, the policy's is 5.0"),
        ({"sensor_window_size": 650}, "sensor_window_size is 65, the policy's is 650"),
        ({"action_hz": 5.0, "sensor_hz": 100}, "action_hz.*; sensor_hz"),
    ],
)
def test_data_that_mean_something_else_are_refused(loaded, workspace, changes, message):
    with pytest.raises(UserError, match=message):
        check_compatible(with_meta(loaded, **changes), workspace.dataset, workspace.features)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vl_dim": 48}, "features are 6 wide, the policy reads 48"),
        ({"vl_slots": 5}, "features have 9 slots, the policy reads 5"),
        ({"vl_slots": 21}, "features have 9 slots, the policy reads 21"),
    ],
)
def test_features_of_another_shape_are_refused(loaded, workspace, changes, message):
    with pytest.raises(UserError, match=message):
        check_compatible(with_policy(loaded, **changes), workspace.dataset, workspace.features)


def test_sensor_channels_matter_to_policies_that_read_them(loaded, workspace):
    policy = loaded.config.policy
    narrow = with_policy(loaded, sensor=dataclasses.replace(policy.sensor, channels=10))
    with pytest.raises(UserError, match="sensor has 1026 channels, the policy reads 10"):
        check_compatible(narrow, workspace.dataset, workspace.features)
    blind = with_policy(narrow, fusion=dataclasses.replace(policy.fusion, strategy="none"))
    check_compatible(blind, workspace.dataset, workspace.features)


def test_another_alignment_is_a_warning(loaded, workspace, caplog):
    with caplog.at_level(logging.WARNING):
        check_compatible(with_meta(loaded, alignment="index"), workspace.dataset, workspace.features)
    assert "aligned by index" in caplog.text


def test_a_copy_of_the_data_elsewhere_fits(workspace, tmp_path):
    run = save_run(workspace, tmp_path / "run")
    shutil.copytree(workspace.data, tmp_path / "copy")
    copy = PackedDataset.open(tmp_path / "copy")
    loaded = load_policy(run)
    check_compatible(loaded, copy, open_matching_features(loaded, copy, workspace.cache))
