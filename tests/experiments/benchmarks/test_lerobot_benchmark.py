"""The benchmark of LeRobot data sets at a size that tries it out; its figures are not looked at."""

import json

import pytest

from experiments.benchmarks import lerobot
from experiments.benchmarks.lerobot import Arguments
from vla_jax.errors import UserError

SMALL = {"rounds": 1, "episodes": 2, "rows": 6, "cameras": 1, "size": (32, 48)}


def test_both_codecs_are_timed_and_written_down(tmp_path, monkeypatch, capsys):
    (tmp_path / "work").mkdir()
    # One process: starting others would take longer than all the rest.
    monkeypatch.setattr(lerobot, "processors", lambda: 1)
    lerobot.main(Arguments(**SMALL, scratch=tmp_path / "work", out=tmp_path / "figures.json"))
    results = json.loads((tmp_path / "figures.json").read_text())["results"]
    sides = ["prepare", "export's input", "prepare and export's input"]
    assert [(result["case"], result["side"]) for result in results] == [
        (codec, side) for codec in ("h264", "av1") for side in sides
    ]
    assert {result["amount"] for result in results} == {12}
    assert "frames/s" in capsys.readouterr().out


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="--rows is 0; it must be at least 1"):
        lerobot.main(Arguments(**{**SMALL, "rows": 0}))
