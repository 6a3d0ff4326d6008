"""The cache benchmark at a size that tries it out; its figures are not looked at."""

import json

import pytest

from experiments.benchmarks import cache
from experiments.benchmarks.cache import Arguments
from vla_jax.errors import UserError

SMALL = {
    "rounds": 1,
    "export_records": 3,
    "views": 1,
    "picture_size": "56x84",
    "read_records": 20,
    "gather": 10,
    "records": 40,
    "width": 8,
}


@pytest.fixture(autouse=True)
def _own_memory_of_digests(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("xdg")))


def test_all_cases_run_and_are_written_down(tmp_path, capsys):
    (tmp_path / "work").mkdir()
    cache.main(Arguments(**SMALL, device="cpu", scratch=tmp_path / "work", out=tmp_path / "figures.json"))
    written = json.loads((tmp_path / "figures.json").read_text())
    sides = [(result["case"], result["side"]) for result in written["results"]]
    assert sides == [
        ("export", "reference loop"),
        ("export", "reference loop, cache kept"),
        ("export", "ours"),
        ("read", "torch.load per record"),
        ("read", "ours, records not read before"),
        ("read", "ours"),
        ("open", "40 records"),
        ("gather", "records not read before"),
        ("gather", "records read before"),
    ]
    assert written["details"]["export"]["difference"] < 2e-3
    assert written["details"]["open"]["shards"] == 1
    assert {"cores", "load_average", "torch"} <= set(written["conditions"])
    assert "reference loop" in capsys.readouterr().out
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"gather": 50}, "a gather of 50 needs as many records"),
        ({"picture_size": "large"}, "write HEIGHTxWIDTH"),
    ],
)
def test_impossible_sizes_are_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        cache.main(Arguments(**{**SMALL, **changes}, cases=("export",)))
