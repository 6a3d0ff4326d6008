"""The benchmarks' common frame: the clock, the table, the file."""

import json

import pytest

from experiments.benchmarks.frame import Frame, FrameArguments, require_positive, scratch_folder, timing_table
from experiments.benchmarks.timing import Timing, in_turn, seconds_per_item
from vla_jax.errors import UserError


def timing(case: str, side: str, *seconds: float) -> Timing:
    return Timing(case=case, side=side, seconds=seconds, amount=10, unit="records")


def test_a_timing_is_summarised_by_median_and_quartiles():
    figures = timing("read", "ours", 4.0, 1.0, 2.0, 5.0, 3.0).figures()
    assert figures == {
        "case": "read",
        "side": "ours",
        "amount": 10,
        "unit": "records",
        "rounds": 5,
        "median_s": 3.0,
        "lower_quartile_s": 2.0,
        "upper_quartile_s": 4.0,
        "best_s": 1.0,
        "rate": pytest.approx(10 / 3),
    }


def test_sides_take_turns():
    called = []
    results = in_turn({side: lambda side=side: called.append(side) or len(called) for side in "ab"}, 3)
    assert called == ["a", "b", "a", "b", "a", "b"]
    assert results == {"a": (1, 3, 5), "b": (2, 4, 6)}


def test_items_are_counted_after_the_warm_up(monkeypatch):
    taken = iter(range(100))
    # The clock stands at the items taken: one second each, none of it before the start.
    now = {"s": 0.0}

    def items():
        for item in taken:
            now["s"] += 100.0 if item < 3 else 1.0
            yield item

    monkeypatch.setattr("time.perf_counter", lambda: now["s"])
    assert seconds_per_item(items(), seconds=0.5, warm_up=3, at_least=4) == 1.0
    assert next(taken) == 7


def test_speeds_are_relative_to_the_first_side_of_each_case():
    timings = [timing("a", "theirs", 4.0), timing("a", "ours", 2.0), timing("b", "ours", 1.0)]
    table = timing_table(timings, columns={"seconds": lambda timing: f"{timing.best_s:g}"})
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells["vs the first"] == ["1.00x", "2.00x", "1.00x"]
    assert cells["seconds"] == ["4", "2", "1"]
    assert cells["records/s"] == ["2.5", "5", "10"]


def test_figures_are_written_with_their_conditions(tmp_path):
    out = tmp_path / "figures.json"
    frame = Frame(FrameArguments(out=out), {"cores": 2})
    frame.finish([timing("a", "ours", 2.0)], more={"shards": 3})
    written = json.loads(out.read_text())
    assert written["conditions"] == {"cores": 2}
    assert [result["median_s"] for result in written["results"]] == [2.0]
    assert written["more"] == {"shards": 3}


def test_what_would_fail_at_the_end_fails_at_once(tmp_path):
    with pytest.raises(UserError, match="--out names a file"):
        Frame(FrameArguments(out=tmp_path / "missing" / "figures.json"), {})
    with (
        pytest.raises(UserError, match="--scratch names one that exists"),
        scratch_folder(tmp_path / "missing"),
    ):
        pass
    with pytest.raises(UserError, match="--rounds is 0"):
        require_positive(FrameArguments(rounds=0), "rounds")
