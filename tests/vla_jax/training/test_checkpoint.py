"""Checkpoints: what is saved comes back, from their directory alone, or one line says why not."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from tests.vla_jax.training import synthetic
from vla_jax.errors import UserError
from vla_jax.training.checkpoint import (
    CHECKPOINTS,
    CheckpointWriter,
    RunIdentity,
    checkpoint_steps,
    load_policy,
    named_leaves,
    resolve_checkpoint,
    restore_state,
    save_policy,
)

IDENTITY = RunIdentity(features={"backbone": "tiny", "grid": 2}, data={"views": ["View1"]})


def write(trainer, run, steps, scores=None):
    writer = CheckpointWriter(run)
    for step in steps:
        metrics = {} if scores is None else {"validation/action_mse": scores[step]}
        writer.save(
            trainer.state,
            step=step,
            config=trainer.config,
            normaliser=trainer.normaliser,
            identity=IDENTITY,
            data_position={"next_index": step},
            metrics=metrics,
        )
    writer.close()


@pytest.fixture(scope="module")
def trainer():
    trainer = synthetic.Trainer(synthetic.config())
    trainer.step(synthetic.batch())
    return trainer


@pytest.fixture(scope="module")
def run(trainer, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    write(trainer, run, [1, 2])
    return run


def test_a_policy_comes_back_from_its_directory_alone(trainer, run):
    loaded = load_policy(run)
    assert loaded.config == trainer.config
    assert loaded.identity == IDENTITY
    assert loaded.step == 2
    _, params, statistics = nnx.split(loaded.network, nnx.Param, ...)
    _assert_equal(params, trainer.state.ema_params)
    _assert_equal(statistics, trainer.state.statistics)
    _assert_equal(loaded.normaliser, trainer.normaliser)


def test_a_training_state_comes_back_whole(trainer, run):
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), trainer.state
    )
    state, normaliser, metadata = restore_state(run / CHECKPOINTS / "2", abstract)
    _assert_equal(dataclasses.replace(state, step=trainer.state.step), trainer.state)
    assert int(state.step) == 2
    assert metadata["data_position"] == {"next_index": 2}
    _assert_equal(normaliser, trainer.normaliser)


def test_newest_and_best_are_kept_and_found(trainer, tmp_path):
    write(trainer, tmp_path, [1, 2, 3, 4, 5], scores={1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0, 5: 2.0})
    assert checkpoint_steps(tmp_path) == [2, 4, 5]
    assert resolve_checkpoint(tmp_path).name == "5"
    assert resolve_checkpoint(tmp_path / CHECKPOINTS).name == "5"
    assert resolve_checkpoint(tmp_path, "best").name == "2"
    assert resolve_checkpoint(tmp_path / CHECKPOINTS / "4").name == "4"


def test_a_stray_numeric_folder_is_no_checkpoint(trainer, tmp_path):
    write(trainer, tmp_path, [1])
    (tmp_path / CHECKPOINTS / "99").mkdir()
    assert resolve_checkpoint(tmp_path).name == "1"


def test_a_bare_network_is_saved_once(trainer, tmp_path):
    network = nnx.merge(trainer.structure, trainer.state.params, trainer.state.statistics, copy=True)
    save_policy(
        tmp_path,
        network,
        config=trainer.config,
        normaliser=synthetic.identity_normaliser(),
        identity=IDENTITY,
    )
    assert load_policy(tmp_path).step == 0
    with pytest.raises(UserError, match="already holds"):
        save_policy(
            tmp_path,
            network,
            config=trainer.config,
            normaliser=synthetic.identity_normaliser(),
            identity=IDENTITY,
        )


def test_missing_and_damaged_checkpoints_are_said(trainer, tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_policy(tmp_path)
    write(trainer, tmp_path, [1])
    checkpoint = tmp_path / CHECKPOINTS / "1"
    metadata = checkpoint / "metadata" / "data.json"
    content = json.loads(metadata.read_text())
    content["config"]["policy"]["expert"]["hidden_dim"] = 32
    metadata.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"does not fit its configuration: .*has shape .*expert"):
        load_policy(tmp_path)
    metadata.write_text(json.dumps(content)[:100])
    with pytest.raises(UserError, match="not a readable"):
        load_policy(tmp_path)


def _assert_equal(tree, expected):
    tree, expected = named_leaves(tree), named_leaves(expected)
    assert tree.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(tree[name], value, err_msg=name)
