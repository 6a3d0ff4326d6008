"""The cache command's answers and exit statuses."""

import pytest

from experiments import cache
from experiments.cache import Gc, Merge, Stats, Verify
from tests.feature_cache.test_maintenance import write
from tests.feature_cache.test_store import flip_bit
from vla_jax.errors import UserError


def test_stats_name_backbone_resolution_and_prompts(tmp_path, capsys):
    write(tmp_path, range(5), processor={"size": {"longest_edge": 230400}})
    assert cache.main(Stats(tmp_path)) is None
    said = capsys.readouterr().out
    for part in ("tiny", "grid 2x2", "230400", "prompt 0 (1)", "and 2 more"):
        assert part in said


def test_verify_names_damaged_shards_and_ends_with_one(tmp_path, capsys):
    path = write(tmp_path, range(3))
    assert cache.main(Verify(tmp_path)) is None
    assert "1 shards, all sound" in capsys.readouterr().out
    flip_bit(path, path.stat().st_size - 3)
    assert cache.main(Verify(tmp_path)) == 1
    assert str(path) in capsys.readouterr().out


def test_gc_says_what_it_did(tmp_path, capsys):
    path = write(tmp_path, range(3))
    cache.main(Gc(tmp_path, limit_gb=0.0, yes=True))
    assert "1 files removed" in capsys.readouterr().out
    assert not path.exists()


@pytest.mark.parametrize(("answer", "removed"), [("y", True), ("yes", True), ("", False), ("n", False)])
def test_gc_asks_where_nothing_is_kept(answer, removed, tmp_path, monkeypatch):
    path = write(tmp_path, range(3))
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or answer)
    if removed:
        cache.main(Gc(tmp_path, limit_gb=0.0))
    else:
        with pytest.raises(UserError, match="nothing was removed"):
            cache.main(Gc(tmp_path, limit_gb=0.0))
    assert path.exists() is not removed
    assert "remove 1 files" in asked[0]
    cache.main(Gc(tmp_path, limit_gb=1.0))  # There is nothing to remove, so nothing to ask.
    assert len(asked) == 1


def test_gc_shows_what_it_would_do(tmp_path, capsys):
    path = write(tmp_path, range(3))
    cache.main(Gc(tmp_path, limit_gb=0.0, dry_run=True))
    said = capsys.readouterr().out
    assert f"would remove {path}" in said
    assert "1 files would be removed" in said
    assert path.exists()


@pytest.mark.parametrize("limit", [-1.0, float("nan"), float("inf")])
def test_gc_refuses_a_limit_that_is_none(limit, tmp_path):
    path = write(tmp_path, range(3))
    with pytest.raises(UserError, match=r"--limit-gb .* is impossible"):
        cache.main(Gc(tmp_path, limit_gb=limit, yes=True))
    assert path.exists()


def test_merge_reports_each_source_and_what_it_left_out(tmp_path, capsys):
    flip_bit(write(tmp_path / "b", [0]), 400)
    write(tmp_path / "c", [1])
    assert cache.main(Merge(tmp_path / "a", (tmp_path / "b", tmp_path / "c"))) == 1
    said = capsys.readouterr().out
    assert "left out" in said
    assert f"{tmp_path / 'c'}: 1 shards copied" in said


def test_the_subcommands_are_parsed(tmp_path, capsys):
    write(tmp_path, [0])
    for argv in (
        ["stats", str(tmp_path)],
        ["verify", str(tmp_path)],
        ["gc", str(tmp_path), "--limit-gb", "1"],
    ):
        with pytest.raises(SystemExit, match="0"):
            cache.COMMAND.run(argv)
    with pytest.raises(SystemExit, match="2"):
        cache.COMMAND.run(["stats", str(tmp_path / "missing")])
    assert "error: " in capsys.readouterr().err
