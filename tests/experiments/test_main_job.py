"""The main job end to end, in the commands a user types: phantom → prepare → export → train → evaluate."""

import json
import shutil
import signal
import time

import numpy as np
import pytest

from tests.calls import call_here
from tests.checkpoints import checkpoint_arrays, logged_lines
from tests.commands import error_line, run_command, start_command
from vla_jax.policy.checkpoints import CHECKPOINTS, checkpoint_steps

TRAIN_OPTIONS = ("--recipe", "debug", "--log-every", "1")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Six simulated episodes, packed, with features of a tiny backbone."""
    root = tmp_path_factory.mktemp("main_job")
    run_command("phantom", root / "episodes", "--episodes", 6, "--seed", 3)
    run_command("prepare", root / "episodes", "--out", root / "data")
    run_command("tiny_backbone", root / "backbone")
    export = ("export", root / "data", "--backbone", root / "backbone", "--cache", root / "cache")
    run_command(*export)
    assert "0 records written" in run_command(*export).stdout
    return root


def train(workspace, run, *options, status=0):
    return run_command(
        "train",
        workspace / "data",
        "--cache",
        workspace / "cache",
        "--out",
        run,
        *TRAIN_OPTIONS,
        *options,
        status=status,
    )


def logged_losses(run):
    return {line["step"]: line["train/loss"] for line in logged_lines(run) if "train/loss" in line}


LEARNING = (
    "--steps",
    240,
    "--lr",
    3e-3,
    "--sensor-lr",
    3e-3,
    "--checkpoint-every",
    120,
    "--validate-every",
    240,
)


@pytest.fixture(scope="module")
def learnt(workspace):
    """A policy that reads the arm's orientation, too, and has learnt a little."""
    run = workspace / "runs" / "learnt"
    train(workspace, run, "--state-enabled", *LEARNING)
    return run


def test_a_policy_is_trained_and_judged(workspace, learnt, tmp_path):
    assert checkpoint_steps(learnt) == [120, 240]
    # It is judged on the episodes it saw: three are too few to ask it of others.
    metrics = judged(workspace, learnt, tmp_path / "report", "train")
    # Enough updates to do better than the mean action.
    assert metrics["factors"]["mean"]["motion_mse"] > 1.3


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "fusion"), [("diffusion", "concat"), ("regression", "none")])
def test_other_policies_are_trained_and_judged(workspace, tmp_path, model_type, fusion):
    train(workspace, tmp_path / "run", "--model-type", model_type, "--fusion-strategy", fusion)
    assert checkpoint_steps(tmp_path / "run") == [2, 4]
    judged(workspace, tmp_path / "run", tmp_path / "report", "val")


def judged(workspace, run, report, split):
    arguments = (run, workspace / "data", "--cache", workspace / "cache", "--out", report, "--split", split)
    shown = run_command("evaluate", *arguments).stdout
    assert "report.html" in shown
    metrics = json.loads((report / "metrics.json").read_text())
    assert set(metrics["baselines"]) >= {"zero", "mean", "previous"}
    assert metrics["overall_mse"] > 0
    assert "align" in metrics["segments"]
    html = (report / "report.html").read_text()
    assert "http-equiv" in html or "<html" in html
    assert 'src="http' not in html
    return metrics


def test_killed_and_resumed_training_ends_with_the_same_bits(workspace, tmp_path):
    """kill -9 in the middle of a run, SIGTERM in the middle of the next one, then to the end."""
    options = ("--steps", "20", "--checkpoint-every", "5", "--validate-every", "10")
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    train(workspace, undisturbed, *options)
    arguments = (
        "train", workspace / "data", "--cache", workspace / "cache", "--out", disturbed, *TRAIN_OPTIONS, *options,
        "--resume",
    )  # fmt: skip
    for number, at_step in ((signal.SIGKILL, 8), (signal.SIGTERM, 12)):
        process = start_command(*arguments)
        deadline = time.monotonic() + 300
        while (
            not (disturbed / "metrics.jsonl").exists() or max(logged_losses(disturbed), default=0) < at_step
        ):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        output, _ = process.communicate(timeout=300)
        if number == signal.SIGTERM:
            assert process.returncode == 0
            assert "--resume" in output or max(logged_losses(disturbed)) == 20
    run_command(*arguments)
    expected, result = checkpoint_arrays(undisturbed, 20), checkpoint_arrays(disturbed, 20)
    assert expected.keys() == result.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(result[name], value, err_msg=name)
    assert logged_losses(disturbed) == logged_losses(undisturbed)


def test_users_mistakes_each_get_one_line_and_status_2(workspace, tmp_path):
    data, cache, run = workspace / "data", workspace / "cache", tmp_path / "run"
    train(workspace, run)
    (tmp_path / "empty").mkdir()

    def refused(name, *arguments):
        done = call_here(name, *arguments)
        assert done.returncode == 2
        return error_line(done)

    out = ("--out", tmp_path / "out")
    assert "nowhere" in refused("train", tmp_path / "nowhere", "--cache", cache, *out)
    assert "empty" in refused("train", tmp_path / "empty", "--cache", cache, *out)
    assert "experiments.export" in refused("train", data, "--cache", tmp_path / "no-cache", *out)
    assert "--resume" in refused("train", data, "--cache", cache, "--out", run, *TRAIN_OPTIONS)
    resume = ("--out", run, *TRAIN_OPTIONS, "--resume")
    assert "trained on the features" in refused(
        "train", data, "--cache", cache, *resume, "--features", "f0f0f0f0f0"
    )
    assert "own configuration" in refused("train", data, "--cache", cache, *resume, "--lr", "0.5")
    assert "device" in refused("train", data, "--cache", cache, *out, *TRAIN_OPTIONS, "--devices", "64")
    assert "contradicts" in refused(
        "train", data, "--cache", cache, *out, "--no-sensor-enabled", "--fusion-strategy", "gated"
    )
    evaluate = (data, "--cache", cache, *out)
    assert "nowhere" in refused("evaluate", tmp_path / "nowhere", *evaluate)
    assert "no checkpoint" in refused("evaluate", tmp_path / "empty", *evaluate)
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    for file in (damaged / CHECKPOINTS / "4" / "ema_params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "damaged" in refused("evaluate", damaged, *evaluate)
    assert "damaged" in refused("export_torch", damaged, tmp_path / "out.pt")
    resume_damaged = ("train", data, "--cache", cache, "--out", damaged, *TRAIN_OPTIONS, "--resume")
    assert f"checkpoint {damaged / CHECKPOINTS / '2'} is sound" in refused(*resume_damaged)
    (damaged / CHECKPOINTS / "4").rename(damaged / "4.damaged")
    run_command(*resume_damaged)
    assert checkpoint_steps(damaged) == [2, 4]
    assert "concatt" in refused("train", data, "--cache", cache, *out, "--fusion-strategy", "concatt")


def rollout_arguments(workspace, out, *runs, episodes=2):
    """Insertions that end early: policies that have hardly learnt would use all of their time."""
    backbone = ("--backbone", workspace / "backbone")
    settings = ("--episodes", episodes, "--parallel", 2, "--time-limit", 4)
    return ("rollout", *runs, *backbone, "--out", out, *settings)


def test_policies_are_judged_in_closed_loop_on_the_same_scenarios(workspace, learnt, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(learnt, again)
    arguments = rollout_arguments(workspace, tmp_path / "report", learnt, again, episodes=1)
    shown = run_command(*arguments, "--feature-latency", 0, "400ms").stdout
    assert "features 0.4 s late" in shown
    found = json.loads((tmp_path / "report" / "rollout.json").read_text())
    assert [(run["name"], run["feature_latency_s"]) for run in found["runs"]] == [
        ("learnt", 0.0), ("learnt", 0.4), ("again", 0.0), ("again", 0.4)
    ]  # fmt: skip
    for run in found["runs"]:
        assert run["episodes"] == 1
        assert 0 <= run["success"]["low"] <= run["success"]["rate"] <= run["success"]["high"] <= 1
        assert sum(run["failures"].values()) == 1 - run["success"]["rate"]
        assert {"depth_error_um", "overshoot_um", "lateral_um", "peak_force_n", "jerk", "chunk_jump"} <= set(
            run
        )
    assert len(found["comparisons"]) == 4
    # Equal weights, equal scenario: the same to the last bit.
    assert found["runs"][0] == found["runs"][2] | {
        key: found["runs"][0][key] for key in ("name", "checkpoint")
    }
    assert found["settings"]["episodes"] == 1
    with np.load(tmp_path / "report" / "rollouts.npz") as arrays:
        np.testing.assert_array_equal(arrays["seed"], [1_000_000] * 4)
    assert 'src="http' not in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.slow
def test_equal_seeds_give_equal_roll_outs_and_what_was_done_can_be_learnt_from(workspace, learnt, tmp_path):
    contents = []
    for name, workers in (("a", 1), ("b", 2)):
        options = ("--workers", workers, "--record", tmp_path / f"recorded_{name}", "--seed", 7)
        run_command(*rollout_arguments(workspace, tmp_path / name, learnt), *options)
        with np.load(tmp_path / name / "rollouts.npz") as arrays:
            contents.append({key: arrays[key] for key in arrays.files})
    for key, value in contents[0].items():
        np.testing.assert_array_equal(value, contents[1][key], err_msg=key)
    shown = run_command("prepare", tmp_path / "recorded_a", "--out", tmp_path / "data").stdout
    assert "2 episodes" in shown
    prompts = {path.parent.name for path in (tmp_path / "recorded_a").glob("*_point/learnt_*")}
    assert prompts <= {"Red_point", "Green_point", "Blue_point", "Yellow_point"}


def test_stopping_keeps_the_episodes_that_are_done(workspace, learnt, tmp_path):
    recorded = tmp_path / "recorded"
    arguments = rollout_arguments(workspace, tmp_path / "report", learnt, episodes=400)
    process = start_command(*arguments, "--record", recorded)
    deadline = time.monotonic() + 300
    while len(list(recorded.glob("*/learnt_*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    (run,) = json.loads((tmp_path / "report" / "rollout.json").read_text())["runs"]
    assert 1 <= run["episodes"] < 400
    assert f"{run['episodes']} of 400 episodes are in the report" in " ".join(output.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--feature-latency", "soon"), "--feature-latency soon is no time"),
        (("--shift", "nowhere"), "--shift 'nowhere'; choose one of"),
        (("--action-latency", "8"), "need a horizon of 9"),
        (("--execute", "0"), "execute must be at least 1"),
        (("--episodes", "0"), "--episodes must be at least 1"),
        (("--time-limit", "0"), "--time-limit must be a number of seconds above 0"),
        (("--sensor-lost", "3", "2"), "sensor_lost"),
        (("--shift", "none", "start", "--record", "somewhere"), "--record takes one"),
    ],
)
def test_what_cannot_be_rolled_out_is_refused_before_anything_is_written(
    workspace, learnt, tmp_path, options, message
):
    arguments = rollout_arguments(workspace, tmp_path / "report", learnt)
    done = call_here(*arguments, *options)
    assert done.returncode == 2
    assert message in error_line(done)
    assert not (tmp_path / "report").exists()


@pytest.mark.slow
def test_a_run_is_judged_in_closed_loop_while_it_trains(workspace, tmp_path):
    options = ("--state-enabled", "--rollout-every", 4, "--rollout-episodes", 1)
    shown = train(workspace, tmp_path / "run", *options, "--backbone", workspace / "backbone")
    assert "step 4: closed loop failure_rate" in shown.stderr
    (judged,) = [line for line in logged_lines(tmp_path / "run") if "closed_loop/failure_rate" in line]
    assert judged["step"] == 4
    assert judged["closed_loop/failure_rate"] in (0.0, 1.0)
    message = error_line(train(workspace, tmp_path / "other", *options, status=2))
    assert "--rollout-every needs --backbone" in message
