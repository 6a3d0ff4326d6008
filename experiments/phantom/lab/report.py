"""What the lab writes when it has ended: lab.json, and the truth about times in truth.npz."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.phantom.lab.arm import Arm
from experiments.phantom.lab.faults import FaultyLink, Restarts
from experiments.phantom.lab.insertions import Insertion
from experiments.phantom.lab.senders import Senders
from experiments.phantom.lab.world import StepClock
from vla_jax.evaluation.intervals import wilson_interval
from vla_jax.storage.replacing import replace_file, replace_text

TRUTH_COLUMNS = ("taken_s", "stamped_s", "sent_s", "arrived_s")


def success(insertions: Sequence[Insertion]) -> dict[str, float] | None:
    """Returns the rate of successes with Wilson's 95 % interval; None of no insertion."""
    if not insertions:
        return None
    count = sum(insertion.outcome.success for insertion in insertions)
    interval = wilson_interval(count, len(insertions))
    return {"rate": count / len(insertions), "low": interval.low, "high": interval.high}


def write_lab_json(
    path: Path,
    insertions: Sequence[Insertion],
    arm: Arm,
    senders: Senders,
    links: Mapping[str, tuple[FaultyLink, Restarts]],
    steps: StepClock,
    settings: Mapping[str, Any],
    seconds: float,
) -> None:
    """Writes lab.json: settings, success, episodes, commands, streams, steps and cpu_share (of one core)."""
    used = os.times()
    content = {
        "settings": dict(settings),
        "success": success(insertions),
        "episodes": [insertion.to_json() for insertion in insertions],
        "commands": dict(sorted(arm.counts.items())),
        "streams": {
            stream: {
                **senders.counts[stream],
                **links[stream][0].counts,
                "sent_late_ms": _spread_ms(senders.sent[stream].late_s),
            }
            for stream in senders.sent
        },
        "steps": {"count": len(steps.late_s), "late_ms": _spread_ms(steps.late_s)},
        "seconds": seconds,
        "cpu_share": (used.user + used.system) / max(seconds, 1e-9),
    }
    replace_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_truth(path: Path, senders: Senders) -> None:
    """Writes truth.npz: for each stream (n, 4) f64 of `TRUTH_COLUMNS`, a row for each message sent."""
    arrays = {
        stream: np.column_stack([getattr(sent, name) for name in TRUTH_COLUMNS])
        for stream, sent in senders.sent.items()
    }
    replace_file(path, lambda handle: np.savez(handle, allow_pickle=False, **arrays))


def _spread_ms(seconds: Sequence[float]) -> dict[str, float] | None:
    if not len(seconds):
        return None
    values = 1000 * np.asarray(seconds)
    p50, p99 = np.quantile(values, [0.5, 0.99])
    return {"p50": float(p50), "p99": float(p99), "max": float(values.max())}
