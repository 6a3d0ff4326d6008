"""What a run says of the time that it will take."""

import numpy as np
import pytest

from vla_jax.training import pace
from vla_jax.training.pace import Pace, duration


def told(monkeypatch, *, start=0, steps=1000, each=2.0):
    """Runs through all updates, each of which takes so many seconds, the first a minute more."""
    clock = [0.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock[0])
    said = []
    of_run = Pace(start, steps, said.append)
    for step in range(start + 1, steps + 1):
        clock[0] += each + (60.0 if step == start + 1 else 0.0)
        of_run.updated(step, np.zeros(()))
    return said


def test_after_ten_updates_the_rest_is_told_once(monkeypatch):
    assert told(monkeypatch) == ["2 s an update: about 33 minutes for the 989 left"]
    assert told(monkeypatch, start=500) == ["2 s an update: about 16 minutes for the 489 left"]
    assert told(monkeypatch, steps=10_000, each=8.1) == ["8.1 s an update: about 22 hours for the 9989 left"]


def test_what_is_soon_over_is_not_told(monkeypatch):
    assert told(monkeypatch, steps=30) == []
    assert told(monkeypatch, steps=5) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(70, "70 seconds"), (150, "2 minutes"), (7300, "2 hours"), (400_000, "5 days")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
