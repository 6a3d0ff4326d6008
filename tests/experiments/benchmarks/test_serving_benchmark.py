"""The benchmark of serving at a size that tries it out; its figures are not looked at."""

import json

import pytest

from experiments.benchmarks import serving
from experiments.benchmarks.serving import Arguments
from vla_jax.errors import UserError

SMALL = {"size": "small", "heads": ("regression",), "clients": (1, 2), "requests": 3, "rounds": 2}


def test_direct_calls_and_clients_are_timed_and_written_down(tmp_path, capsys):
    serving.main(Arguments(**SMALL, max_batch=2, out=tmp_path / "figures.json"))
    results = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert [(result["case"], result["side"]) for result in results] == [
        ("regression", side) for side in ("direct", "1 client", "2 clients")
    ]
    assert [result["amount"] for result in results] == [3, 3, 6]
    assert all(0 < result["p50_ms"] <= result["p99_ms"] for result in results)
    assert "requests/s" in capsys.readouterr().out


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="--clients is"):
        serving.main(Arguments(**{**SMALL, "clients": (0,)}))
