"""The demo's verdict and summary; the commands it runs are tested in test_main_job.py."""

import json

import pytest

from experiments.console import make_console
from experiments.demo import findings, read_metrics, read_rollouts, run_command, summary_table, verdict
from vla_jax.errors import UserError


def report(overall_mse, stop_mse=0.001):
    segments = {
        "align": {"all": {"first_r2_per_dim": [0.91, 0.92]}},
        "near_target": {"with_sensor": {"first_mse_per_dim": [0.0, 0.0, stop_mse]}},
    }
    baselines = {
        name: {"overall_mse": error, "motion_mse": error / 2}
        for name, error in (("zero", 0.15), ("mean", 0.003))
    }
    return {
        "overall_mse": overall_mse,
        "motion_mse": overall_mse,
        "baselines": baselines,
        "segments": segments,
    }


def rollout(rate):
    return {"success": {"rate": rate, "low": rate - 0.1, "high": min(rate + 0.1, 1.0)}}


@pytest.mark.parametrize(
    ("overall_mse", "rate", "expected"),
    [(0.0015, 0.7, True), (0.0016, 0.7, False), (0.0015, 0.6, False)],
)
def test_each_policy_must_beat_the_training_mean_and_succeed(overall_mse, rate, expected):
    judged = {
        "regression": (report(0.001), rollout(0.9)),
        "diffusion": (report(overall_mse), rollout(rate)),
    }
    passed, said = verdict(judged)
    assert passed is expected
    assert said.startswith("Check passed" if expected else "Check failed")
    assert "training mean" in said
    assert "regression 3.0x, 90%; diffusion" in said


def test_the_summary_names_every_policy_and_baseline_with_its_factors(capsys):
    metrics = {"regression": report(0.001), "vision-only": report(0.002, stop_mse=0.005)}
    make_console().print(summary_table(metrics, {"regression": rollout(0.9), "vision-only": rollout(0.1)}))
    shown = capsys.readouterr().out
    for text in ("regression policy", "vision-only policy", "zero (baseline)", "75.0x", "3.0x", "80%–100%"):
        assert text in shown
    vision, sensor = findings(metrics)
    assert "0.91 and 0.92" in vision
    assert "(5.0x)" in sensor


def test_metrics_are_read_and_a_failed_command_stops_the_demo(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"overall_mse": 1.0}))
    assert read_metrics(tmp_path) == {"overall_mse": 1.0}
    (tmp_path / "rollout.json").write_text(json.dumps({"runs": [{"name": "a", "episodes": 3}]}))
    assert read_rollouts(tmp_path) == {"a": {"name": "a", "episodes": 3}}
    with pytest.raises(UserError, match=r"experiments\.prepare ended with status 2"):
        run_command("prepare", tmp_path / "nowhere", "--out", tmp_path / "data")
