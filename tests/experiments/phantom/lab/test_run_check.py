"""A run of live in the lab is judged by its log and by what the lab knows; here both are made up."""

import json

import numpy as np
import pytest

from experiments.phantom.lab.run_check import ages, check_run, memory
from experiments.phantom.soak import lines
from tests.vla_jax.reporting.live_logs import event, write_log
from tests.vla_jax.reporting.live_logs import tick as line
from vla_jax.errors import UserError
from vla_jax.live.log import summary_of_lines

START = 1_790_000_000.0
OFFSET_S = -3.0
"""What is added to the sensor's clock."""


def truth(seconds=20.0, *, jitter_s=0.0, seed=0):
    """A sensor's messages every 20 ms, on a clock 3 s ahead, and a robot's every 10 ms on ours."""
    rng, found = np.random.default_rng(seed), {}
    for stream, period_s, offset_s in (("sensor", 0.02, -OFFSET_S), ("robot", 0.01, 0.0)):
        taken = START - 1 + np.arange(0, seconds + 1, period_s)
        sent = taken + 0.02
        arrived = sent + jitter_s * rng.random(len(sent))
        arrived[::50] = np.nan
        found[stream] = np.column_stack([taken, taken + offset_s, sent, arrived])
    return found


def seen(known, stream, moment, *, late_s=0.001):
    """When the newest row was taken that a receiver which is a millisecond late has at a moment."""
    return known[stream][known[stream][:, 3] <= moment - late_s, 0].max()


def ticks(known, *, error_s=0.0, late_s=0.001, count=100):
    """Lines of a run whose estimate of the sensor's clock is off by so much."""
    made = []
    for k in range(count):
        moment = START + 0.1 * k + 0.0003 * k
        sensor, state = (seen(known, stream, moment, late_s=late_s) for stream in ("sensor", "robot"))
        made.append(
            line(
                k,
                timestamp=moment,
                age_ms={
                    "sensor": 1e3 * (moment - sensor - error_s),
                    "state": 1e3 * (moment - state),
                    "features": 400.0,
                },
                clock_s={"sensor": OFFSET_S + error_s, "state": 0.0},
                memory_mb=800.0 + (30.0 if k < 10 else 0.0),
            )
        )
    return made


@pytest.mark.parametrize("jitter_s", [0.0, 0.05])
def test_right_ages_are_right_however_late_messages_came(jitter_s):
    known = truth(jitter_s=jitter_s)
    made = ticks(known)
    for name in ("sensor", "state"):
        found = ages(name, known, made)
        assert found["ticks"] == 100
        assert found["within"] == 1.0
        assert found["largest_ms"] < 0.01
        assert (found["unknown"], found["overlooked"]) == (0, 0)


def test_a_clock_that_is_estimated_wrong_is_found():
    found = ages("sensor", truth(), ticks(truth(), error_s=0.007))
    assert found["median_ms"] == pytest.approx(-7.0, abs=0.01)
    assert found["within"] == 0.0


def test_what_a_clock_is_off_before_it_is_known_is_told_apart():
    known = truth()
    made = [*ticks(known, error_s=0.007, count=100), *ticks(known, count=150)[100:]]
    found = ages("sensor", known, made)
    assert found["within"] == pytest.approx(50 / 150)
    assert found["within_when_settled"] == 1.0


def test_an_earlier_row_of_a_message_is_as_old_as_it_is():
    known = truth()
    made = ticks(known)
    for each in made:
        each["age_ms"]["sensor"] += 10.0
    found = ages("sensor", known, made)
    assert found["within"] == 1.0
    assert found["unknown"] == 0


def test_rows_that_had_come_long_before_and_were_not_seen_are_counted():
    known = truth()
    assert ages("sensor", known, ticks(known, late_s=0.1))["overlooked"] == 1.0
    assert ages("sensor", known, ticks(known, late_s=0.015))["overlooked"] == 0.0


def test_rows_that_nobody_sent_are_unknown():
    known = truth()
    made = ticks(known)
    for each in made[:30]:
        each["clock_s"]["state"] = 100.0
    assert ages("state", known, made)["unknown"] == 30
    for each in made:
        each["mode"] = "hold"
    assert ages("state", known, made) is None


def test_memory_is_compared_with_what_it_was_after_a_minute():
    made = [
        line(k, timestamp=START + k, memory_mb=900.0 - min(k, 50) + (3.0 if k == 90 else 0.0))
        for k in range(100)
    ]
    assert memory(made) == {
        "after_a_minute": 850.0,
        "last": 850.0,
        "lowest": 850.0,
        "highest": 853.0,
        "furthest": 3.0,
    }
    assert memory(made[:30]) is None


def write_run(tmp_path):
    known = truth()
    made = [*ticks(known), event(100, "stop")]
    log = write_log(tmp_path / "log", made)
    summary = summary_of_lines(map(json.dumps, made)) | {
        "ended": "done",
        "counts": {"sensor/messages": 980, "sensor_rows/received": 12740, "sensor_rows/lost": 260},
    }
    (log / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "lab").mkdir()
    told = {
        "success": {"rate": 0.5, "low": 0.1, "high": 0.9},
        "episodes": [{}, {}],
        "seconds": 20.0,
        "streams": {"sensor": {"sent": 1000}, "robot": {"sent": 2000}, "cameras": {}},
    }
    (tmp_path / "lab" / "lab.json").write_text(json.dumps(told))
    np.savez(tmp_path / "lab" / "truth.npz", **known)


def test_a_run_is_told_in_lines(tmp_path):
    write_run(tmp_path)
    found = check_run(tmp_path / "lab", tmp_path / "log")
    assert found["streams"]["sensor"] == {
        "sent": 1000,
        "received": 980,
        "hz": 650.0,
        "rows": 12740,
        "rows_lost": 260,
    }
    assert found["features_age_ms"] == {"p10": 400.0, "p50": 400.0, "p99": 400.0, "max": 400.0}
    text = "\n".join(lines(found | {"rollout": {"rate": 0.6, "low": 0.2, "high": 0.9}}))
    for part in (
        "2 insertions; ended: done",
        "sensor: 980 of 1000 messages, 12740 rows, 260 lost",
        "ticks: 0 of 100 missed (0.000%)",
        "tick late: p50 0.2, p99 5.0",
        "age of sensor: 100.00% of 100 ticks right within 5 ms",
        "success in the lab: 50.0% (95 % interval 10% to 90%)",
        "success in rollout, the same scenarios: 60.0%",
    ):
        assert part in text


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(UserError, match="hold no finished run"):
        check_run(tmp_path / "lab", tmp_path / "log")
