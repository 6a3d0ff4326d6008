"""phantom.soak as a user starts it: lab and live as processes, and what it says of them."""

import json

import pytest

from experiments.acting import Acting
from experiments.phantom.lab.weather import Weather
from experiments.phantom.soak import _words
from tests.commands import error_line, run_command, start_command
from tests.vla_jax.live.live_policies import write_lab_policy


def test_options_are_handed_on_where_they_are_not_the_defaults():
    assert _words(Acting()) == []
    assert _words(Acting(execute=2, guided=True, action_latency="200ms")) == [
        "--execute", "2", "--action-latency", "200ms", "--guided",
    ]  # fmt: skip
    weather = Weather(clock_step=(20.0, -1.5), faults=("lost=0.02", "sensor.late=0.05"))
    assert _words(weather) == ["--clock-step", "20.0", "-1.5", "--faults", "lost=0.02", "sensor.late=0.05"]


@pytest.mark.slow
def test_a_short_soak_says_what_the_run_was_like(tmp_path):
    write_lab_policy(tmp_path / "run", tmp_path / "backbone")
    words = ("phantom.soak", tmp_path / "run", "--backbone", tmp_path / "backbone", "--out", tmp_path / "out")
    process = start_command(*words, "--minutes", 0.3, "--clock-offset", 3, "--faults", "lost=0.02")
    output, errors = process.communicate(timeout=600)
    # 1: a machine that is too busy holds the arm for so long that live stops it.
    assert process.returncode in (0, 1), errors
    found = json.loads((tmp_path / "out" / "soak.json").read_text())
    assert found["ticks"] > 0
    assert found["streams"]["sensor"]["received"] > 0
    if process.returncode == 0:
        assert found["ages"]["sensor"]["within"] > 0.9
        assert "age of sensor:" in output
    assert "ticks: " in output
    again = run_command(*words, "--minutes", 0.1, status=2)
    assert "holds a run already" in error_line(again)


def test_what_keeps_live_from_acting_is_told(tmp_path):
    words = ("phantom.soak", tmp_path / "nothing", "--backbone", tmp_path, "--out", tmp_path / "out")
    refused = run_command(*words, "--minutes", 1, status=2)
    assert "live ended before it acted: error: " in error_line(refused)
