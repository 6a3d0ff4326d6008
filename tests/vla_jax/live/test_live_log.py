"""The log of a live run: whole lines whatever ends it, and a summary that can be made of them again."""

import json
import math

import numpy as np
import pytest

from vla_jax.errors import UserError
from vla_jax.live.log import SUMMARY_FILE, TICKS_FILE, LiveLog, summary_of_lines


def tick(number, **fields):
    return {
        "timestamp": 1e9 + 0.1 * number,
        "episode": 1,
        "late_ms": float(number),
        "missed": int(number == 3),
        "sent": True,
        "age_ms": {"state": 10.0, "sensor": None},
        "action": np.array([0.25, math.nan], np.float32),
        **fields,
    }


def test_lines_and_summary(tmp_path):
    log = LiveLog(tmp_path / "log")
    for number in range(5):
        log.tick(tick(number))
    log.tick(tick(5, intervention="hold", reasons=("force",), sent=False))
    log.event(1e9, "stop", "asked", sent=np.bool_(True))
    log.more["ended"] = "asked"
    log.close()
    lines = (tmp_path / "log" / TICKS_FILE).read_text().splitlines()
    first = json.loads(lines[0])
    assert first["kind"] == "tick"
    assert first["action"] == [0.25, None]
    assert json.loads(lines[-1]) == {
        "kind": "event", "timestamp": 1e9, "event": "stop", "text": "asked", "sent": True
    }  # fmt: skip
    summary = json.loads((tmp_path / "log" / SUMMARY_FILE).read_text())
    assert summary["ended"] == "asked"
    assert (summary["ticks"], summary["missed"], summary["sent"], summary["episodes"]) == (6, 1, 5, 1)
    assert summary["seconds"] == pytest.approx(0.5)
    assert summary["statistics"]["late_ms"] == pytest.approx(
        {"count": 6, "mean": 2.5, "p50": 2.5, "p95": 4.75, "p99": 4.95, "max": 5.0}
    )
    assert summary["statistics"]["age_ms/state"]["count"] == 6
    assert "age_ms/sensor" not in summary["statistics"]
    assert summary["interventions"] == {"force": 1}
    assert summary["events"] == {"stop": 1}


def test_a_log_that_was_cut_off_is_summed_up_all_the_same():
    lines = [json.dumps({"kind": "tick", **tick(i, action=None)}) for i in range(3)]
    assert summary_of_lines([*lines, lines[0][:40], "[]", "null"])["ticks"] == 3
    assert summary_of_lines([])["ticks"] == 0


def test_a_log_is_not_written_over(tmp_path):
    LiveLog(tmp_path).close()
    with pytest.raises(UserError, match="holds a log already"):
        LiveLog(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the log"):
        LiveLog(tmp_path / "file" / "log")
