"""Which configuration `train` begins with, from its options and from what it continues."""

import dataclasses
from pathlib import Path

import pytest

from experiments.train import Arguments, configuration
from tests.vla_jax.evaluation.workspace import make_workspace, policy_config, save_run, save_training
from vla_jax.errors import UserError
from vla_jax.policy.artifact import load_policy
from vla_jax.policy.checkpoints import resolve_checkpoint
from vla_jax.policy.config import PolicyConfig
from vla_jax.training.config import TrainConfig


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("train"))


def configured(workspace, *, resumed=None, initial=None, **options):
    arguments = Arguments(data=workspace.data, cache=workspace.cache, out=Path("run"), **options)
    return configuration(arguments, workspace.dataset, workspace.features, resumed, initial)


def test_a_run_begins_with_the_network_of_a_checkpoint_and_the_recipe_s_training(workspace, tmp_path):
    initial = load_policy(save_run(workspace, tmp_path))
    config = configured(workspace, initial=initial, recipe="small", lr=3e-4)
    assert config.policy == initial.config
    assert config.normalisation == initial.metadata.normalisation
    assert (config.steps, config.optimizer.lr) == (500, 3e-4)
    assert config.init_from == str(resolve_checkpoint(tmp_path))


def test_an_imported_regression_no_longer_starts_from_the_answer(workspace, tmp_path):
    policy = policy_config(workspace)
    policy = dataclasses.replace(policy, head=dataclasses.replace(policy.head, z_chunk="target"))
    assert policy.head.z_chunk == PolicyConfig.reference("regression").head.z_chunk
    initial = load_policy(save_run(workspace, tmp_path, policy))
    assert configured(workspace, initial=initial, recipe="small").policy.head.z_chunk == "zero"
    assert configured(workspace, initial=initial, recipe="reference").policy.head.z_chunk == "target"


def test_a_second_warm_up_begins_at_the_last_rate(workspace, tmp_path):
    base = TrainConfig(policy=policy_config(workspace))
    resumed = resolve_checkpoint(save_training(workspace, tmp_path, base))
    config = configured(workspace, resumed=resumed, resume=True, rewarm=True, steps=20_000)
    # The checkpoint is at step 0, where the schedule begins at the first step of its warm-up.
    assert config.optimizer.rewarm.step == 0
    assert config.optimizer.rewarm.lr == pytest.approx(base.optimizer.lr / 300, rel=1e-5)
    assert config.optimizer.rewarm.sensor_lr == pytest.approx(base.optimizer.sensor_lr / 300, rel=1e-5)
    with pytest.raises(UserError, match="--rewarm goes with --resume"):
        configured(workspace, rewarm=True)


def test_a_schedule_by_epochs_counts_the_samples(workspace):
    config = configured(workspace, recipe="debug", sched_on="epoch", epochs=6)
    samples = len(workspace.features.sample_ticks("train"))
    assert config.optimizer.schedule_interval == round(samples / config.batch_size)
    assert config.steps == round(6 * samples / config.batch_size)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"vlm_reuse_count": 5}, "prepared with --vlm-reuse-count 3"),
        ({"steps": 3, "epochs": 1.0}, "--steps or --epochs"),
        ({"sensor_enabled": False, "fusion_strategy": "gated"}, "contradicts"),
        ({"config": Path("nowhere.json")}, "no such configuration file"),
    ],
)
def test_options_that_contradict_are_refused(workspace, options, told):
    with pytest.raises(UserError, match=told):
        configured(workspace, **options)


def test_remat_changes_the_network_only_in_how_it_computes(workspace):
    plain, remat = (
        configured(workspace, recipe="debug", **options)
        for options in ({}, {"remat": True, "vlm_reuse_count": 3})
    )
    assert remat.policy.remat
    assert not plain.policy.remat
