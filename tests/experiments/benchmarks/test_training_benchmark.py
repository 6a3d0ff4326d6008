"""The training benchmark: its sides read the same samples, and it runs."""

import json

import jax
import numpy as np
import pytest

from experiments.benchmarks.networks import policy_config
from experiments.benchmarks.reference_feeding import PerSampleFiles, sample_files
from experiments.benchmarks.torch_heads import Policy
from experiments.benchmarks.torch_training import PackedBatches
from experiments.benchmarks.training import Arguments, make_training_workspace
from experiments.benchmarks.training_sides import Task, train_config
from tests.commands import run_command
from vla_jax.dataset.batches import make_batch
from vla_jax.training.optimizer import make_optimizer
from vla_jax.training.state import make_state


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    arguments = Arguments(size="small", episodes=2, episode_seconds=3.0)
    return make_training_workspace(tmp_path_factory.mktemp("benchmark") / "workspace", arguments, 65, "small")


def test_the_reference_pattern_reads_the_samples_that_we_pack(workspace):
    dataset = workspace.dataset()
    ticks = dataset.sample_ticks("train")
    ours = make_batch(dataset, workspace.features(dataset), ticks)
    theirs = PerSampleFiles(sample_files(workspace))
    assert len(theirs) == len(ticks) > 20
    for index in range(len(ticks)):
        sample = theirs[index]
        np.testing.assert_array_equal(sample["actions"], ours.actions[index])
        np.testing.assert_array_equal(sample["vl"], ours.observation.vl[index])
        assert sample["sensor"].shape == ours.observation.sensor[index].shape == (65, 1026)
    # The newest recorded window is seldom the one that ends at the tick, but all its rows are from the stream.
    rows = {row.tobytes() for row in np.asarray(dataset.sensor, np.float32)}
    assert all(row.tobytes() in rows for row in theirs[5]["sensor"].numpy())


def test_packed_batches_are_what_our_loader_makes(workspace):
    batches = PackedBatches(workspace, 4)
    batch = batches[0]
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "vl": (4, 21, 64),
        "sensor": (4, 65, 1026),
        "actions": (4, 8, 7),
    }
    np.testing.assert_array_equal(batch["sensor"], batches[0]["sensor"])


@pytest.mark.parametrize("model_type", ["diffusion", "regression"])
def test_both_sides_train_one_network(workspace, model_type):
    config = train_config(
        Task(workspace, model_type, "small", 65, batch_size=4, updates=2, seconds=1.0, workers=1)
    )
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = jax.eval_shape(lambda: make_state(config, optimizer, jax.random.key(0)))
    ours = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert ours == sum(p.numel() for p in Policy(policy_config(model_type, 65, "small")).parameters())


@pytest.mark.slow
def test_the_benchmark_runs_and_devices_do_not_change_the_losses(tmp_path):
    options = (
        "--size", "small", "--sensor-lengths", "65", "--model-types", "diffusion", "regression", "--updates", "2",
        "--episodes", "2", "--episode-seconds", "3", "--no-compile-torch", "--workers", "1", "--devices", "1", "4",
        "--device-updates", "3", "--scratch", tmp_path, "--out", tmp_path / "figures.json",
    )  # fmt: skip
    shown = run_command("benchmarks.training", *options).stdout
    assert "torch eager, reference files" in shown
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len(figures["results"]) == 6
    assert all(result["rate"] > 0 for result in figures["results"])
    assert [(row["devices"], row["fsdp"]) for row in figures["devices"]] == [(1, 1), (4, 1), (4, 4)]
    assert all(row["difference"] < 1e-4 for row in figures["devices"])
    assert not list(tmp_path.glob("vla-jax-benchmark-*"))
