"""The page of a live run: what the log says, and nothing that a damaged log could break."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vla_jax.reporting.live_logs import event, tick, write_log
from tests.vla_jax.reporting.test_evaluation_page import parse
from vla_jax.errors import UserError
from vla_jax.reporting.live_page import MAX_EVENTS, live_html
from vla_jax.reporting.live_plots import MAX_POINTS, largest_of_stretches, stretches
from vla_jax.reporting.live_record import _entry, read_live_record


def entries():
    held = tick(70, intervention="hold", reasons=["sensor <old>"], action=[0.0] * 7)
    late = tick(90, missed=2, late_ms=210.0)
    run = [tick(k) for k in range(100) if k not in (70, 90, 88, 89)]
    return [event(0, "start", "<b>"), *run[:70], held, *run[70:], late, event(99, "end", "done")]


@pytest.fixture
def record(tmp_path):
    return read_live_record(write_log(tmp_path / "log", entries(), tail='{"kind": "tick", "timest'))


def test_the_record_says_what_the_lines_say(record):
    assert record.num_ticks == 98
    assert record.damaged_lines == 1
    assert record.missed_share == pytest.approx(0.02)
    assert record.ages_ms["sensor"].tolist() == [21.0] * 98
    assert np.isnan(record.ages_ms["View1"]).all()
    assert record.action.shape == (98, 7)
    assert record.intervention.count("hold") == 1
    assert {number: int(ticks.sum()) for number, ticks in record.by_episode().items()} == {1: 50, 2: 48}
    assert [name for _, name, _ in record.events] == ["start", "end"]


def test_the_page_shows_it(record):
    text = live_html(record, "log <1>")
    parse(text)
    for shown in (
        "Live run log &lt;1&gt;",
        "98 ticks",
        "2.00 %",
        "sensor &lt;old&gt;",
        "1 damaged line(s)",
        "newest sensor row to the command",
        "&lt;b&gt;",
        "p99 26 ms",
        "memory, largest",
    ):
        assert shown in text, shown
    assert text.count("data:image/png;base64,") == 4
    assert "http" not in text


def test_a_dry_run_that_never_predicted_has_a_page(tmp_path):
    empty = dict.fromkeys(("action_prediction_time", "sensor_to_command_ms", "raw_action", "action"))
    log = write_log(tmp_path / "log", [tick(0, **empty, age_ms={}, sent=False, episode=0)])
    text = live_html(read_live_record(log / "ticks.jsonl"), "log")
    parse(text)
    assert "None." in text


def test_many_events_are_cut(tmp_path):
    many = [event(k, "clock_step") for k in range(MAX_EVENTS + 5)]
    text = live_html(read_live_record(write_log(tmp_path / "log", [tick(0), *many])), "log")
    assert "5 more are in the log" in text


def test_what_is_no_log_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no log"):
        read_live_record(tmp_path)
    with pytest.raises(UserError, match="holds no tick"):
        read_live_record(write_log(tmp_path / "log", [event(0, "start")], "\0\0[1"))


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(tick(0))),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
)
def test_a_strange_line_is_left_out_or_fits(tmp_path_factory, name, value):
    folder = tmp_path_factory.mktemp("log")
    record = read_live_record(write_log(folder, [tick(0), tick(1, **{name: value}), tick(2)]))
    assert record.num_ticks + record.damaged_lines + len(record.events) == 3
    assert record.action.shape == (record.num_ticks, 7)


def test_long_lines_are_drawn_by_their_largest_points():
    values = np.zeros(10_000)
    values[7_123] = -9.0
    moments, largest = largest_of_stretches(np.arange(10_000.0), values)
    assert len(moments) == MAX_POINTS
    assert largest.min() == -9.0
    assert moments[largest.argmin()] == 7_123
    assert stretches([False, True, True, False, True]) == [(1, 2), (4, 4)]


def test_a_line_that_is_too_long_is_left_out():
    assert _entry(json.dumps(tick(0, text="x" * (1 << 20)))) is None
