"""The parts that docs/extending.md shows work end to end, as they stand there."""

import io
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from tests.commands import REPOSITORY
from tests.pages import fenced_blocks, run_blocks
from tests.vla_jax.evaluation.workspace import make_workspace
from tests.vla_jax.recordings.recorded_episodes import START, write_windows_episode
from vla_jax.dataset.schema import unregister_column
from vla_jax.errors import UserError
from vla_jax.evaluation.closed_loop import RolloutSettings, roll_out
from vla_jax.evaluation.environments import LocalEnvironments
from vla_jax.evaluation.open_loop import evaluate
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.recordings.registry import unregister_reader
from vla_jax.reference.tensor_names import tensor_names
from vla_jax.training.checkpoint import saved_config

BLOCKS = fenced_blocks(REPOSITORY / "docs" / "extending.md", "python")


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """The folder with the page's modules, which can be imported from it."""
    folder = tmp_path_factory.mktemp("modules")
    run_blocks([block for block in BLOCKS if block.file], folder)
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    for name in {path.stem for path in folder.glob("*.py")} & (set(sys.modules) - before):
        del sys.modules[name]


def use(section, folder):
    """Runs what the page shows of a section's module in `folder`; returns what that defined."""
    return run_blocks([block for block in BLOCKS if block.section == section and not block.file], folder)


def run_program(modules, folder, *arguments):
    """Runs the page's program that knows all parts; returns what it printed."""
    done = subprocess.run(
        [sys.executable, modules / "my_vla.py", *map(str, arguments)],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def head(modules, tmp_path_factory):
    """What the page's training of its own head defined, and its folder."""
    folder = tmp_path_factory.mktemp("head")
    workspace = make_workspace(folder)
    workspace.data.rename(folder / "DATA")
    workspace.cache.rename(folder / "CACHE")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield use("A head", folder), folder


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.file or f"line {block.line}")
def test_examples_are_short(block):
    assert sum(bool(line.strip()) for line in block.text.splitlines()) <= 45


def test_the_head_learns(head):
    lines = [json.loads(line) for line in (head[1] / "RUN" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert any("validation/action_mse" in line for line in lines)


def test_the_head_is_restored_and_judged(head):
    names, _ = head
    policy, dataset, actions = names["policy"], names["dataset"], names["actions"]
    own = names["perceptron_head"].PerceptronConfig()
    assert policy.config.head == saved_config(policy.loaded.path).policy.head == own
    assert policy.sampler is None
    assert actions.shape == (4, 8, 7)
    # What each sample leads to depends on what it saw, and nothing is drawn.
    assert (np.ptp(actions[..., :3], axis=0) > 0).all()
    again = policy.infer(names["batch"].observation, jax.random.key(3))
    np.testing.assert_array_equal(again, actions)
    metrics = evaluate(policy, dataset, names["features"], "val", batch_size=16).metrics
    assert metrics["policy"]["model_type"] == "perceptron"
    # What a checkpoint says of its held-out error is what evaluation finds.
    assert metrics["overall_mse"] == pytest.approx(policy.loaded.metadata.metrics["validation/action_mse"])


def test_what_the_head_does_not_have_is_said(head):
    with pytest.raises(UserError, match="a perceptron policy has no sampler"):
        InsertionPolicy.from_checkpoint(head[1] / "RUN", steps=4)
    with pytest.raises(UserError, match="the reference has no perceptron head"):
        tensor_names(head[0]["policy"].config)


def test_the_commands_know_the_head(modules, head):
    _, folder = head
    shown = run_program(
        modules, folder, "train", "DATA", "--cache", "CACHE", "--out", "OTHER", "--recipe", "small",
        "--model-type", "perceptron", "--print-config",
    )  # fmt: skip
    assert json.loads(shown)["policy"]["head"] == {"kind": "perceptron", "hidden_dim": 64, "inner_dim": 128}


@pytest.fixture
def logs(tmp_path):
    """Five logs in LOGS, the last without commands."""
    rng, logs = np.random.default_rng(0), []
    for number in range(5):
        log = {
            "time": START + np.arange(40) / 20,
            "joint": rng.normal(size=(40, 14)),
            "command": rng.normal(size=(40, 14)).astype(np.float32),
            "picture_time": START + np.arange(10) / 5,
            "picture": rng.integers(0, 255, (10, 8, 12, 3), np.uint8),
        }
        folder = tmp_path / "LOGS" / f"episode_{number}"
        folder.mkdir(parents=True)
        np.savez(folder / "log.npz", **{name: log[name] for name in log if number < 4 or name != "command"})
        logs.append(log)
    return logs


def test_the_reader_reads(modules, tmp_path, logs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        names = use("A reader", tmp_path)
        dataset = names["dataset"]
        assert [entry.format for entry in dataset.episodes] == ["joint_log"] * 4
        assert dataset.spec.actions.units == ("rad",) * 14
        assert dataset.spec.state == dataset.spec.actions.names == names["joint_log"].JOINTS
        assert names["chunks"].shape == (4 * 40, 16, 14)
        np.testing.assert_array_equal(
            dataset.ticks.delta, np.concatenate([log["command"] for log in logs[:4]])
        )
        np.testing.assert_array_equal(dataset.ticks.pose, np.concatenate([log["joint"] for log in logs[:4]]))
        # A picture every fourth tick; the features of the newest at each third.
        (image,) = dataset.records[int(dataset.record_index(np.array([40 + 10]))[0])].images
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(image.read()))), logs[1]["picture"][9 // 4]
        )
    finally:
        unregister_reader("joint_log")


def test_prepare_knows_the_reader_and_says_what_is_wrong(modules, tmp_path, logs):
    options = ("--out", "DATA", "--action-hz", 20, "--horizon", 16, "--workers", 2)
    shown = " ".join(run_program(modules, tmp_path, "prepare", "LOGS", *options).split())
    assert "4 episodes" in shown
    assert "log.npz: lacks command" in shown


def test_the_column_is_packed(modules, tmp_path):
    episodes = [write_windows_episode(tmp_path / "EPISODES" / name, seconds=1.0) for name in ("a", "b")]
    times, torques = START + 0.25 + np.arange(20) / 20, np.arange(60.0).reshape(20, 3)
    np.savez(episodes[1] / "torques.npz", time=times, torque=torques)
    try:
        names = use("A per-tick column", tmp_path)
        dataset, found = names["dataset"], names["torques"]
        assert [entry.format for entry in dataset.episodes] == ["windows", "windows_with_torques"]
        assert np.isnan(found[:10]).all()
        # At 0, 0.1, … s; the first value comes at 0.25 s, and then one each 0.05 s.
        assert np.isnan(found[10:13]).all()
        np.testing.assert_array_equal(found[13:20], torques[1:15:2])
        np.testing.assert_array_equal(dataset.batch_columns(np.array([14]))["torque"], torques[[3]])
    finally:
        unregister_reader("windows_with_torques")
        unregister_column("torque")


def test_the_environment_judges(modules, tmp_path, capsys):
    use("An environment", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert sorted(int(line.split()[0]) for line in lines) == list(range(10))
    assert all(line.split()[1] == "True" for line in lines)


def test_a_trained_policy_acts_in_the_environment(modules, head):
    from soft_wall import SoftWall

    policy = head[0]["policy"]

    class Grey:
        """Stands for a backbone that sees the same in every picture."""

        spec = policy.features

        def encode_batch(self, observations):
            shape = (len(observations), self.spec.num_slots)
            return np.zeros((*shape, self.spec.width), np.float32), np.ones(shape, bool)

    settings = RolloutSettings(max_ticks=3)
    (rollout,) = roll_out(
        policy.predict, Grey(), LocalEnvironments([SoftWall()]), [4], settings, jax.random.key(0)
    )
    assert rollout.outcome.failure == "too_short"
    assert rollout.chunks.shape == (3, 8, 7)
    expected = -np.cumsum(np.clip(-rollout.actions[:, 2], -0.3, 0.3))
    np.testing.assert_allclose(rollout.pose[1:, 2], expected, atol=1e-6)
