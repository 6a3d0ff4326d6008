"""Progress in a log file: plain lines with what is done, the rate and the time left."""

import io
import re
import sys

from vla_jax import progress


def test_without_a_terminal_there_is_a_plain_line_now_and_then(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress.progress_bar(total=4, desc="train", unit="step") as bar:
        for _ in range(4):
            bar.set_postfix_str("loss 0.5, lr 1.0e-03, gradient 1.2, 120 samples/s, data 0%", refresh=False)
            bar.update()
            with progress.progress_bar(total=2, desc="validate", unit="batch", leave=False) as inner:
                inner.update(2)
    lines = log.getvalue().splitlines()
    assert re.fullmatch(r"train: 4 of 4, .*step/s, 00:00 left, loss 0.5, lr .*, data 0%", lines[-1])
    assert any(line.startswith("validate: 2 of 2, ") for line in lines)
    # No bar, nothing that moves a cursor.
    assert not re.search(r"[|#\r\x1b]", log.getvalue())


def test_a_short_job_says_nothing(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress.progress_bar(total=3, desc="prepare") as bar:
        bar.update(3)
    assert log.getvalue() == ""
