"""The cache command's answers and exit statuses."""

import pytest

from experiments import cache
from experiments.cache import Gc, Merge, Stats, Verify
from tests.feature_cache.test_maintenance import write
from tests.feature_cache.test_store import flip_bit


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
    cache.main(Gc(tmp_path, limit_gb=0.0))
    assert "1 files removed" in capsys.readouterr().out
    assert not path.exists()


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
