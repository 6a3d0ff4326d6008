"""Checkpoints: what is saved comes back, from their directory alone, or one line says why not."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from tests.vla_jax.training import synthetic
from vla_jax.contracts.provenance import Provenance
from vla_jax.errors import UserError
from vla_jax.policy.artifact import load_policy, save_policy
from vla_jax.policy.checkpoints import CHECKPOINTS, checkpoint_steps, resolve_checkpoint
from vla_jax.policy.metadata import PolicyMetadata, RunIdentity
from vla_jax.storage.array_items import named_leaves
from vla_jax.storage.checksums import CHECKSUMS_FILE, write_checksums
from vla_jax.training.checkpoint import CheckpointWriter, restore_training, saved_config

IDENTITY = RunIdentity(features={"backbone": "tiny", "grid": 2}, data={"views": ["View1"]})


def write(trainer, run, steps, scores=None, identity=IDENTITY):
    writer = CheckpointWriter(run)
    for step in steps:
        metrics = {} if scores is None else {"validation/action_mse": scores[step]}
        writer.save(
            trainer.state,
            step=step,
            config=trainer.config,
            normaliser=trainer.normaliser,
            data=synthetic.DATA,
            features=synthetic.FEATURES,
            identity=identity,
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
    assert loaded.config == trainer.config.policy
    assert loaded.metadata.data == synthetic.DATA
    assert loaded.metadata.features == synthetic.FEATURES
    assert loaded.metadata.identity == IDENTITY
    assert loaded.metadata.step == 2
    _, params, statistics = nnx.split(loaded.network, nnx.Param, ...)
    _assert_equal(params, trainer.state.ema_params)
    _assert_equal(statistics, trainer.state.statistics)
    _assert_equal(loaded.normaliser, trainer.normaliser)


def test_a_training_state_comes_back_whole(trainer, run):
    restored = restore_training(run / CHECKPOINTS / "2", _abstract(trainer.state))
    _assert_equal(dataclasses.replace(restored.state, step=trainer.state.step), trainer.state)
    assert int(restored.state.step) == 2
    assert restored.data_position == {"next_index": 2}
    _assert_equal(restored.normaliser, trainer.normaliser)
    assert saved_config(run / CHECKPOINTS / "2") == trainer.config


def test_newest_and_best_are_kept_and_found(trainer, tmp_path):
    write(trainer, tmp_path, [1, 2, 3, 4, 5], scores={1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0, 5: 2.0})
    assert checkpoint_steps(tmp_path) == [2, 4, 5]
    assert resolve_checkpoint(tmp_path).name == "5"
    assert resolve_checkpoint(tmp_path / CHECKPOINTS).name == "5"
    assert resolve_checkpoint(tmp_path, "best").name == "2"
    assert resolve_checkpoint(tmp_path / CHECKPOINTS / "4").name == "4"


def test_errors_on_other_data_are_not_compared(trainer, tmp_path):
    write(trainer, tmp_path, [1, 2], scores={1: 0.1, 2: 0.2}, identity=RunIdentity(data={"samples": "a"}))
    assert resolve_checkpoint(tmp_path, "best").name == "1"
    scores = {3: 4.0, 4: 5.0, 5: 6.0, 6: 7.0}
    write(trainer, tmp_path, list(scores), scores, identity=RunIdentity(data={"samples": "b"}))
    assert checkpoint_steps(tmp_path) == [3, 5, 6]
    assert resolve_checkpoint(tmp_path, "best").name == "3"


def test_a_stray_numeric_folder_is_no_checkpoint(trainer, tmp_path):
    write(trainer, tmp_path, [1])
    (tmp_path / CHECKPOINTS / "99").mkdir()
    assert resolve_checkpoint(tmp_path).name == "1"


def test_a_bare_network_is_saved_once(trainer, tmp_path):
    network = nnx.merge(trainer.structure, trainer.state.params, trainer.state.statistics, copy=True)
    metadata = PolicyMetadata(
        trainer.config.policy, synthetic.DATA, synthetic.FEATURES, trainer.config.normalisation
    )
    save_policy(tmp_path, network, synthetic.identity_normaliser(), metadata)
    loaded = load_policy(tmp_path)
    assert loaded.metadata == metadata
    _assert_equal(nnx.state(loaded.network), nnx.state(network))
    with pytest.raises(UserError, match="was imported, not trained here"):
        saved_config(loaded.path)
    with pytest.raises(UserError, match="already holds"):
        save_policy(tmp_path, network, synthetic.identity_normaliser(), metadata)


def test_missing_and_damaged_checkpoints_are_said(trainer, tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_policy(tmp_path)
    write(trainer, tmp_path, [1])
    checkpoint = tmp_path / CHECKPOINTS / "1"
    metadata = checkpoint / "metadata" / "data.json"
    content = json.loads(metadata.read_text())
    content["network"]["head"]["hidden_dim"] = 32
    metadata.write_text(json.dumps(content))
    write_checksums(checkpoint)
    with pytest.raises(UserError, match=r"does not fit its configuration: .*has shape .*expert"):
        load_policy(tmp_path)
    metadata.write_text(json.dumps(content)[:100])
    write_checksums(checkpoint)
    with pytest.raises(UserError, match="not a readable"):
        load_policy(tmp_path)


def test_one_flipped_bit_anywhere_is_noticed_before_anything_is_read(trainer, run, tmp_path):
    """In every file, at its first and last byte and at places between them, the checksums themselves included."""
    shutil.copytree(run, tmp_path / "run")
    checkpoint = tmp_path / "run" / CHECKPOINTS / "2"
    abstract = _abstract(trainer.state)
    restore_training(checkpoint, abstract)
    rng = np.random.default_rng(0)
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.stat().st_size]
    assert len(files) > 20
    for path in files:
        content = path.read_bytes()
        for position in {0, len(content) - 1, *rng.integers(0, len(content), 3).tolist()}:
            changed = bytearray(content)
            changed[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            with pytest.raises(UserError, match=r"2 is damaged .*/1 is sound: name that one"):
                restore_training(checkpoint, abstract)
        path.write_bytes(content)
    restore_training(checkpoint, abstract)


@pytest.mark.parametrize("item", ["ema_params", "statistics", "normaliser", "metadata"])
def test_a_policy_is_not_made_of_damaged_parts(run, tmp_path, item):
    shutil.copytree(run, tmp_path / "run")
    checkpoint = tmp_path / "run" / CHECKPOINTS / "2"
    _flip_a_bit(checkpoint / item)
    with pytest.raises(UserError, match=rf"2 is damaged \({item}/.* has changed\); checkpoint .*1 is sound"):
        load_policy(tmp_path / "run")
    assert load_policy(checkpoint.with_name("1")).metadata.step == 1


def test_damage_that_a_policy_does_not_need_does_not_keep_it_from_running(trainer, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    _flip_a_bit(tmp_path / "run" / CHECKPOINTS / "2" / "optimizer")
    assert load_policy(tmp_path / "run").metadata.step == 2
    with pytest.raises(UserError, match="2 is damaged"):
        restore_training(tmp_path / "run" / CHECKPOINTS / "2", _abstract(trainer.state))


def test_missing_and_added_files_are_damage(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    checkpoint = tmp_path / "run" / CHECKPOINTS / "2"
    (checkpoint / "params" / ".nfs0001").write_text("a hidden file of a file system")
    load_policy(checkpoint)
    added = checkpoint / "ema_params" / "added"
    added.write_text("")
    with pytest.raises(UserError, match="ema_params/added was not written with it"):
        load_policy(checkpoint)
    added.unlink()
    next((checkpoint / "ema_params" / "d").iterdir()).unlink()
    with pytest.raises(UserError, match=r"ema_params/d/.* is missing"):
        load_policy(checkpoint)
    (checkpoint / CHECKSUMS_FILE).unlink()
    with pytest.raises(UserError, match=rf"damaged \({CHECKSUMS_FILE} is missing\)"):
        load_policy(checkpoint)


def test_where_no_checkpoint_is_sound_it_says_so(trainer, tmp_path):
    write(trainer, tmp_path, [1, 2])
    for step in ("1", "2"):
        (tmp_path / CHECKPOINTS / step / "normaliser" / "_METADATA").write_text("{}")
    with pytest.raises(UserError, match="holds no other sound checkpoint"):
        load_policy(tmp_path)


def test_checkpoints_from_before_there_were_checksums_are_read(run, tmp_path, caplog):
    shutil.copytree(run, tmp_path / "run")
    checkpoint = tmp_path / "run" / CHECKPOINTS / "2"
    metadata = checkpoint / "metadata" / "data.json"
    metadata.write_text(json.dumps(old_metadata(checkpoint, version=1)))
    shutil.rmtree(checkpoint / "training")
    (checkpoint / CHECKSUMS_FILE).unlink()
    assert load_policy(checkpoint).metadata.step == 2
    assert "read unchecked" in caplog.text


def old_metadata(checkpoint, *, version=2, **identity):
    """What formats 1 and 2 said of a checkpoint in one item."""
    new, training = (
        json.loads((checkpoint / item / "data.json").read_text()) for item in ("metadata", "training")
    )
    policy = training["config"]["policy"]
    head = policy.pop("head")
    old = {
        "format_version": version,
        "step": new["step"],
        "config": training["config"],
        "identity": {"features": {}, "data": {}} | identity,
        "centre_ascan": new["normalisation"]["sensor"] == "centred",
        "data_position": training["data_position"],
        "metrics": new["metrics"],
        "unlogged": training["unlogged"],
        "versions": new["versions"],
    }
    policy |= {
        "model_type": head.pop("kind"),
        "z_chunk": head.pop("z_chunk"),
        "expert": head,
        "diffusion": {},
    }
    if version == 1:
        del old["unlogged"]
    return old


def test_checkpoints_of_format_2_are_read_for_acting_and_for_resuming(trainer, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    checkpoint = tmp_path / "run" / CHECKPOINTS / "2"
    provenance = Provenance("b", "name", None, {}, "c")
    meta = {
        "views": ["View1"], "action_hz": 10.0, "horizon": 8, "alignment": "index", "vlm_reuse_count": 3,
        "sensor_window_size": synthetic.WINDOW, "sensor_hz": 650.0,
    }  # fmt: skip
    old = old_metadata(
        checkpoint,
        features={**vars(provenance), "digest": provenance.digest()},
        data={"path": "somewhere", "meta": meta},
    )
    (checkpoint / "metadata" / "data.json").write_text(json.dumps(old))
    shutil.rmtree(checkpoint / "training")
    write_checksums(checkpoint)
    loaded = load_policy(checkpoint)
    assert loaded.config == trainer.config.policy
    assert loaded.metadata.data == dataclasses.replace(synthetic.DATA, alignment="index")
    assert loaded.metadata.features == dataclasses.replace(synthetic.FEATURES, provenance=provenance)
    assert loaded.metadata.weights == "ema_params"
    assert loaded.metadata.identity.data["path"] == "somewhere"
    _assert_equal(nnx.state(loaded.network, nnx.Param), trainer.state.ema_params)
    assert saved_config(checkpoint) == trainer.config
    restored = restore_training(checkpoint, _abstract(trainer.state))
    assert restored.data_position == {"next_index": 2}
    _assert_equal(dataclasses.replace(restored.state, step=trainer.state.step), trainer.state)


@pytest.mark.parametrize("missing", ["config", "identity", "centre_ascan"])
def test_metadata_of_format_2_that_lack_something_are_said(run, tmp_path, missing):
    shutil.copytree(run, tmp_path / "run")
    checkpoint = tmp_path / "run" / CHECKPOINTS / "2"
    old = old_metadata(checkpoint)
    del old[missing]
    (checkpoint / "metadata" / "data.json").write_text(json.dumps(old))
    write_checksums(checkpoint)
    with pytest.raises(UserError, match=f"not a readable vla-jax checkpoint.*{missing}"):
        load_policy(checkpoint)


def test_what_killed_processes_left_is_no_checkpoint_and_goes(trainer, tmp_path):
    write(trainer, tmp_path, [1, 2])
    remains = [
        tmp_path / CHECKPOINTS / name
        for name in ("3.unfinished", "3.unfinished.orbax-checkpoint-tmp", ".tmp-0-12-3ab")
    ]
    for remain in remains:
        shutil.copytree(tmp_path / CHECKPOINTS / "2", remain)
    assert checkpoint_steps(tmp_path) == [1, 2]
    write(trainer, tmp_path, [3])
    assert not any(remain.exists() for remain in remains)
    assert checkpoint_steps(tmp_path) == [2, 3]


def test_a_damaged_checkpoint_is_never_discarded(trainer, tmp_path):
    write(trainer, tmp_path, [1, 2])
    (tmp_path / CHECKPOINTS / "1" / "metadata" / "data.json").write_text("{")
    write(trainer, tmp_path, [3, 4])
    assert checkpoint_steps(tmp_path) == [1, 3, 4]


def test_a_checkpoint_that_cannot_be_written_is_said(trainer, tmp_path):
    """As on a full disk: the file system refuses."""
    (tmp_path / CHECKPOINTS).mkdir()
    (tmp_path / CHECKPOINTS / "1").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*checkpoints/1: "):
        write(trainer, tmp_path, [1])
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["1"]


def _flip_a_bit(item):
    """Changes one bit in the middle of an item's largest file."""
    largest = max((path for path in item.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def _abstract(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def _assert_equal(tree, expected):
    tree, expected = named_leaves(tree), named_leaves(expected)
    assert tree.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(tree[name], value, err_msg=name)
