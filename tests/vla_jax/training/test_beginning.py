"""How a run begins: from its request, the data, and what it goes on from, as a table of cases."""

import dataclasses
import shutil
from pathlib import Path

import jax
import pytest

from tests.vla_jax.evaluation.workspace import (
    PROVENANCE,
    export_features,
    make_workspace,
    policy_config,
    save_run,
    save_training,
)
from vla_jax.contracts.specs import FeatureSpec
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.dataset.preparation import PrepareOptions, prepare
from vla_jax.errors import UserError
from vla_jax.evaluation.open_loop import evaluate
from vla_jax.heads.regression import RegressionConfig
from vla_jax.policy.artifact import load_policy
from vla_jax.policy.checkpoints import resolve_checkpoint
from vla_jax.policy.config import PolicyConfig
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.storage import config_json
from vla_jax.training.beginning import FUSION, begin
from vla_jax.training.checkpoint import saved_config
from vla_jax.training.config import TrainConfig
from vla_jax.training.loop import train
from vla_jax.training.recipes import make_config
from vla_jax.training.request import Request
from vla_jax.training.sharding import make_mesh
from vla_jax.training.unrestored import unrestored


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("beginning"))


@pytest.fixture(scope="module")
def run(workspace):
    """Two updates of the debug recipe, with another learning rate."""
    out = workspace.root / "run"
    trained(
        workspace,
        beginning(workspace, out=out, recipe="debug", settings={"steps": 2, "optimizer.lr": 3e-4}),
        out,
    )
    return out


def trained(workspace, begun, out):
    train(begun.config, workspace.dataset, begun.features, out, mesh=make_mesh(1), initial=begun.initial)


def beginning(workspace, *, out=Path("nowhere"), settings=None, **asked):
    return begin(Request(cache=workspace.cache, out=out, **asked), workspace.dataset, settings)


def configured(workspace, **asked):
    return beginning(workspace, **asked).config


def test_a_new_run_is_the_recipe_s_with_what_was_asked_for(workspace):
    begun = beginning(
        workspace, recipe="debug", model_type="diffusion", diffusion_timesteps=50, settings={FUSION: "gated"}
    )
    assert (begun.resumed, begun.initial, begun.notes) == (None, None, ())
    assert (begun.config.recipe, begun.config.batch_size) == ("debug", 8)
    policy = begun.config.policy
    assert (policy.head.kind, policy.fusion.strategy, policy.head.steps) == ("diffusion", "gated", 50)
    assert (policy.vl_dim, policy.vl_slots) == (begun.features.width, begun.features.num_slots)
    export_features(workspace.dataset, workspace.root / "wide", PROVENANCE, width=8)
    plain = begin(Request(cache=workspace.root / "wide", out=Path("nowhere")), workspace.dataset).config
    assert (plain.recipe, plain.policy.head.kind, plain.policy.fusion.strategy) == (
        "frozen",
        "regression",
        "concat",
    )


def test_data_without_sensor_are_fused_without_one_and_it_is_said(tmp_path):
    blind = make_workspace(tmp_path, has_sensor=False)
    begun = beginning(blind, recipe="debug")
    assert begun.config.policy.fusion.strategy == "none"
    (note,) = begun.notes
    assert "has no sensor: fusion none" in note
    asked = beginning(blind, recipe="debug", settings={FUSION: "concat"})
    assert (asked.config.policy.fusion.strategy, asked.notes) == ("concat", ())


def test_a_run_of_the_reference_s_recipe_says_what_it_does_not_restore(workspace, monkeypatch):
    (note,) = beginning(workspace, recipe="reference").notes
    assert "export --pooling mean" in note
    assert "prepare --alignment index" in note
    assert "windows=3" not in note
    assert "BatchNorm" not in note
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    (note,) = beginning(workspace, recipe="small_reference").notes
    assert "BatchNorm's statistics for each GPU" in note
    assert "BatchNorm" not in beginning(workspace, recipe="reference", settings={FUSION: "none"}).notes[0]
    assert beginning(workspace, recipe="small").notes == ()


@pytest.mark.parametrize(
    ("weights", "restored"),
    [
        ([("legacy", 1), ("windows", 3)], True),
        ([("legacy", 2), ("legacy", 1), ("windows", 3)], True),
        ([("legacy", 1), ("windows", 1)], False),
        ([("legacy", 1), ("legacy", 3), ("windows", 3)], False),
        ([("windows", 1), ("capture", 1)], True),
    ],
)
def test_the_reference_draws_windows_three_times_as_often(workspace, weights, restored):
    entry = next(entry for entry in workspace.dataset.episodes if entry.split == "train")
    mixed = PackedDataset.open(workspace.data)
    mixed.episodes = tuple(
        dataclasses.replace(entry, format=kind, weight=float(weight)) for kind, weight in weights
    )
    config = policy_config(workspace)
    note = unrestored(config, FeatureSpec(1, 6), mixed)
    assert ("windows=3" not in note) is restored


def test_a_run_begins_with_the_network_of_a_checkpoint_and_the_recipe_s_training(workspace, tmp_path):
    saved = save_run(workspace, tmp_path)
    begun = beginning(workspace, init_from=saved, recipe="small", settings={"optimizer.lr": 3e-4})
    before = load_policy(saved)
    assert begun.config.policy == before.config
    assert begun.config.normalisation == before.metadata.normalisation
    assert (begun.config.steps, begun.config.optimizer.lr) == (500, 3e-4)
    assert begun.config.init_from == str(resolve_checkpoint(tmp_path))
    assert begun.initial is not None
    assert begun.initial.path == resolve_checkpoint(tmp_path)


def test_fields_of_the_head_are_set_by_their_names(workspace, tmp_path):
    asked = {"recipe": "debug", "model_type": "flow"}
    head = configured(
        workspace, head=("prefix_max=2", "time_shift=4", "horizon_embedding=false"), **asked
    ).policy.head
    plain = configured(workspace, **asked).policy.head
    assert head == dataclasses.replace(plain, prefix_max=2, time_shift=4.0, horizon_embedding=False)
    # A denoiser with a prefix has no parameters that one without lacks; a regression has.
    saved = save_run(workspace, tmp_path / "a", policy_config(workspace, "diffusion"))
    begun = beginning(workspace, init_from=saved, recipe="debug", head=("prefix_max=2",))
    assert begun.config.policy.head.longest_prefix == 2
    saved = save_run(workspace, tmp_path / "b")
    with pytest.raises(UserError, match=r"other parameters \(expert.prefix_in.bias\)"):
        beginning(workspace, init_from=saved, recipe="debug", head=("prefix_max=2",))


def test_fields_of_the_sensor_encoder_are_set_by_their_names(workspace, tmp_path):
    asked = ("readout=flatten", "averaged_rows=2")
    sensor = configured(workspace, recipe="debug", sensor_encoder=asked).policy.sensor
    plain = configured(workspace, recipe="debug").policy.sensor
    assert sensor == dataclasses.replace(plain, readout="flatten", averaged_rows=2)
    # Fewer rows need no other parameters.
    saved = save_run(workspace, tmp_path)
    begun = beginning(workspace, init_from=saved, recipe="debug", sensor_encoder=("averaged_rows=2",))
    assert begun.config.policy.sensor.averaged_rows == 2


def test_an_imported_regression_no_longer_starts_from_the_answer(workspace, tmp_path):
    head = RegressionConfig(hidden_dim=8, num_layers=1, num_heads=2, z_chunk="target")
    policy = policy_config(workspace, head=head)
    assert head.z_chunk == PolicyConfig.reference("regression").head.z_chunk
    saved = save_run(workspace, tmp_path, policy)
    assert configured(workspace, init_from=saved, recipe="small").policy.head.z_chunk == "zero"
    assert configured(workspace, init_from=saved, recipe="reference").policy.head.z_chunk == "target"


def test_a_second_warm_up_begins_at_the_last_rate(workspace, tmp_path):
    saved = save_training(workspace, tmp_path, TrainConfig(policy=policy_config(workspace)))
    again = configured(workspace, out=saved, resume=True, rewarm=True, settings={"steps": 20_000})
    base = saved_config(resolve_checkpoint(saved))
    # The checkpoint is at step 0, where the schedule begins at the first step of its warm-up.
    assert again.optimizer.rewarm.step == 0
    assert again.optimizer.rewarm.lr == pytest.approx(base.optimizer.lr / 300, rel=1e-5)
    assert again.optimizer.rewarm.sensor_lr == pytest.approx(base.optimizer.sensor_lr / 300, rel=1e-5)


def test_a_schedule_by_epochs_counts_the_samples(workspace):
    begun = beginning(workspace, recipe="debug", sched_on="epoch", epochs=6, settings={"batch_size": 4})
    samples = len(begun.features.sample_ticks("train"))
    assert begun.config.optimizer.schedule_interval == round(samples / 4)
    assert begun.config.steps == round(6 * samples / 4)


def test_remat_changes_the_network_only_in_how_it_computes(workspace):
    plain, remat = (
        configured(workspace, recipe="debug", settings=settings, vlm_reuse_count=3)
        for settings in ({}, {"policy.remat": True})
    )
    assert not plain.policy.remat
    assert remat == dataclasses.replace(plain, policy=dataclasses.replace(plain.policy, remat=True))


def test_a_file_says_everything_and_options_change_it(workspace, tmp_path):
    config = configured(workspace, recipe="debug")
    file = tmp_path / "config.json"
    file.write_text(config_json.to_json(config))
    assert configured(workspace, config=file) == config
    assert configured(workspace, config=file, settings={"seed": 7}) == dataclasses.replace(config, seed=7)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"vlm_reuse_count": 5}, "prepared with --vlm-reuse-count 3"),
        ({"settings": {"steps": 3}, "epochs": 1.0}, "--steps or --epochs"),
        ({"sensor": False, "settings": {FUSION: "gated"}}, "contradicts --fusion-strategy gated"),
        ({"config": Path("nowhere.json")}, "no such configuration file"),
        ({"rewarm": True}, "--rewarm goes with --resume"),
        ({"config": Path("a.json"), "recipe": "small"}, "--config or --recipe, not both"),
        ({"config": Path("a.json"), "init_from": Path("run")}, "--config or --init-from, not both"),
        (
            {"recipe": "debug", "diffusion_timesteps": 50},
            "leave --diffusion-timesteps out",
        ),
        ({"recipe": "debug", "settings": {"batch_size": 3, "grad_accum_steps": 2}}, "does not divide"),
    ],
)
def test_what_contradicts_itself_or_the_data_is_refused(workspace, asked, told):
    with pytest.raises(UserError, match=told):
        beginning(workspace, **asked)


def test_a_network_that_is_fixed_is_not_contradicted(workspace, tmp_path):
    saved = save_run(workspace, tmp_path)
    for asked in ({"model_type": "diffusion"}, {"settings": {FUSION: "gated"}}):
        with pytest.raises(UserError, match="contradicts the given configuration"):
            beginning(workspace, init_from=saved, recipe="debug", **asked)
    same = {"model_type": "regression", "settings": {FUSION: "concat"}}
    assert configured(workspace, init_from=saved, recipe="debug", **same).init_from is not None


def test_a_resumed_run_takes_again_all_that_it_began_with(workspace, run):
    file = run / "config.json"
    saved = saved_config(resolve_checkpoint(run))
    for asked in (
        {},
        {"recipe": "debug"},
        {"recipe": "debug", "settings": {"steps": 2, "optimizer.lr": 3e-4}},
        {"config": file},
        {"model_type": "regression", "settings": {FUSION: "concat"}},
    ):
        begun = beginning(workspace, out=run, resume=True, **asked)
        assert (begun.config, begun.resumed, begun.notes) == (saved, resolve_checkpoint(run), ()), asked
    longer = configured(workspace, out=run, resume=True, settings={"steps": 9, "log_every": 3})
    assert longer == dataclasses.replace(saved, steps=9, log_every=3)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"recipe": "small"}, "began with the recipe debug"),
        (
            {"settings": {"optimizer.lr": 1e-3}},
            "only --steps, --validate-every, --checkpoint-every, --log-every",
        ),
        ({"settings": {"policy.remat": True}}, "may change"),
        ({"init_from": Path("elsewhere")}, "which began with weights of its own"),
        ({"model_type": "diffusion"}, "--model-type diffusion contradicts"),
        ({"settings": {FUSION: "none"}}, "--fusion-strategy none contradicts"),
        ({"sensor": False}, "--fusion-strategy none contradicts"),
        ({"features": "0123"}, "not 0123; leave --features out"),
        ({"rewarm": True}, "the run is at step 2 of 2; give more --steps"),
    ],
)
def test_a_resumed_run_takes_nothing_else(workspace, run, asked, told):
    with pytest.raises(UserError, match=told):
        beginning(workspace, out=run, resume=True, **asked)


@pytest.fixture(scope="module")
def other(workspace):
    """A data set of the first two episodes, with features in the workspace's cache."""
    sources = [str(path) for path in sorted((workspace.root / "episodes").rglob("episode_[01]"))]
    return prepare(sources, workspace.root / "other", PrepareOptions(val_fraction=0.4, seed=2)).dataset


def test_a_resumed_run_refuses_other_data_and_says_what_differs(workspace, run, other):
    request = Request(cache=workspace.cache, out=run, resume=True)
    told = (
        r"was trained on other data: path .*; episodes 5, not 2; training samples \d+, not \d+.*--other-data"
    )
    with pytest.raises(UserError, match=told):
        begin(request, other)
    begun = begin(dataclasses.replace(request, other_data=True), other)
    assert (begun.other_data, begun.resumed) == (True, resolve_checkpoint(run))
    assert beginning(workspace, out=run, resume=True, other_data=True).other_data is False
    with pytest.raises(UserError, match="--other-data goes with --resume"):
        beginning(workspace, other_data=True)


def test_the_same_data_elsewhere_are_the_same(workspace, run, tmp_path):
    shutil.copytree(workspace.data, tmp_path / "moved")
    moved = PackedDataset.open(tmp_path / "moved")
    again = prepare(
        [str(workspace.root / "episodes")], tmp_path / "again", PrepareOptions(val_fraction=0.4, seed=2)
    ).dataset
    assert again.index["content"] != moved.index["content"]
    for dataset in (moved, again):
        begun = begin(Request(cache=workspace.cache, out=run, resume=True), dataset)
        assert begun.other_data is False
    reweighted = prepare(
        [str(workspace.root / "episodes")],
        tmp_path / "again",
        PrepareOptions(val_fraction=0.4, seed=2, weights={"windows": 2.0}),
    ).dataset
    with pytest.raises(UserError, match=r"other episodes, prompts or weights|path"):
        begin(Request(cache=workspace.cache, out=run, resume=True), reweighted)


def test_a_run_that_goes_on_with_other_data_is_judged_on_them_first(workspace, run, other, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    begun = begin(Request(cache=workspace.cache, out=out, resume=True, other_data=True), other)
    said = []
    result = train(
        begun.config,
        other,
        begun.features,
        out,
        mesh=make_mesh(1),
        resume=True,
        other_data=True,
        announce=said.append,
    )
    # The run had ended: nothing but the judgement is new.
    assert result.step == 2
    judged = evaluate(InsertionPolicy.from_checkpoint(out), other, begun.features, "val", batch_size=8)
    assert result.metrics["validation/action_mse"] == pytest.approx(judged.metrics["overall_mse"], rel=1e-4)
    assert any(line.startswith("on the other data at step 2: held-out action_mse") for line in said)


def test_a_resumed_run_refuses_another_file_and_names_what_differs(workspace, run, tmp_path):
    config = saved_config(resolve_checkpoint(run))
    file = tmp_path / "config.json"
    file.write_text(config_json.to_json(dataclasses.replace(config, seed=5, steps=100)))
    with pytest.raises(UserError, match="which has another seed; leave it out"):
        beginning(workspace, out=run, resume=True, config=file)
    # What the file has otherwise may be given by options, as when the run began.
    assert configured(workspace, out=run, resume=True, config=file, settings={"seed": 0}) == config


def test_a_resumed_run_takes_again_the_weights_that_it_began_with(workspace, tmp_path):
    first = save_run(workspace, tmp_path / "first")
    second = tmp_path / "second"
    begun = beginning(workspace, out=second, init_from=first, recipe="debug", settings={"steps": 1})
    trained(workspace, begun, second)
    for path in (first, first / "checkpoints" / "0"):
        again = beginning(workspace, out=second, resume=True, init_from=path, recipe="debug")
        assert (again.config, again.initial) == (begun.config, None)
    with pytest.raises(UserError, match=r"which began with .*first/checkpoints/0; leave it out"):
        beginning(workspace, out=second, resume=True, init_from=second)


def test_a_run_that_does_not_name_its_recipe_goes_on_and_says_so(workspace, tmp_path):
    saved = save_training(workspace, tmp_path, TrainConfig(policy=policy_config(workspace)))
    begun = beginning(workspace, out=saved, resume=True, recipe="small")
    assert begun.config == saved_config(resolve_checkpoint(saved))
    (note,) = begun.notes
    assert "does not say which recipe it began with" in note


def test_nothing_to_resume_begins_anew_and_an_import_cannot_be_resumed(workspace, tmp_path):
    begun = beginning(workspace, out=tmp_path / "new", resume=True, recipe="debug")
    assert (begun.resumed, begun.config.recipe) == (None, "debug")
    imported = save_run(workspace, tmp_path / "imported")
    with pytest.raises(UserError, match="was imported, not trained here"):
        beginning(workspace, out=imported, resume=True)


def test_public_names_are_found():
    import vla_jax.training

    assert vla_jax.training.train is train
    assert vla_jax.training.make_config is make_config
    assert vla_jax.training.TrainConfig is TrainConfig
