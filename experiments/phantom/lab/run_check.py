"""What a run of `live` in the lab was like, by its log and by what the lab knows: OUT/lab.json and OUT/truth.npz.

Ages are checked against the lab's own times. A line of the log says what its ages count from (`timestamp`) and what was
added to a sender's clock (`clock_s`): so it says which row was the newest seen, and the lab knows when that was taken.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.phantom.lab.world import ROWS_PER_BATCH
from vla_jax.errors import UserError
from vla_jax.live.log import SUMMARY_FILE, TICKS_FILE

AGE_TOLERANCE_MS = 5.0
RECEIVED_WITHIN_S = 0.02
"""What arrived so long before a tick should have been seen in it."""
SETTLED_S = 10.0
"""Until the estimate of a clock should be right (`vla_jax.live.clock`)."""
WARM_S = 60.0
"""Until memory should be flat."""
_STREAMS = {"sensor": ("sensor", 25.0), "state": ("robot", 1.0)}
"""Name in the log → name in the truth, and how many ms before a message's newest row its others may have been taken."""
_RECENT_S = 10.0


def check_run(lab: Path, log: Path) -> dict[str, Any]:
    """Returns what was asked of a run: rates, missed ticks, jitter, latency, memory, ages, success.

    Raises:
        UserError: one of the two is not there, or not whole.
    """
    try:
        told = json.loads((lab / "lab.json").read_text(encoding="utf-8"))
        summary = json.loads((log / SUMMARY_FILE).read_text(encoding="utf-8"))
        with np.load(lab / "truth.npz") as stored:
            truth = {name: stored[name] for name in stored.files}
        lines = (log / TICKS_FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{lab}, {log}: hold no finished run of the lab and live ({error})") from error
    ticks = [tick for tick in map(json.loads, lines) if tick["kind"] == "tick"]
    statistics, counts = summary["statistics"], summary["counts"]
    due = summary["ticks"] + summary["missed"]
    return {
        "seconds": summary["seconds"],
        "ended": summary["ended"],
        "ticks": summary["ticks"],
        "missed": summary["missed"],
        "missed_share": summary["missed"] / max(due, 1),
        "late_ms": statistics.get("late_ms"),
        "sensor_to_command_ms": statistics.get("sensor_to_command_ms"),
        "features_age_ms": _features_age(ticks),
        "streams": _streams(told, counts),
        "memory_mb": memory(ticks),
        "ages": {name: ages(name, truth, ticks) for name in _STREAMS},
        "success": told["success"],
        "episodes": len(told["episodes"]),
        "interventions": summary["interventions"],
        "events": summary["events"],
    }


def memory(ticks: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Returns the memory of `live` in 10⁶ bytes: after the first minute, and how far from that it ever was later."""
    seen = [(tick["timestamp"], tick["memory_mb"]) for tick in ticks if tick.get("memory_mb") is not None]
    later = [value for moment, value in seen if moment >= seen[0][0] + WARM_S]
    if not later:
        return None
    return {
        "after_a_minute": later[0],
        "last": later[-1],
        "lowest": min(later),
        "highest": max(later),
        "furthest": max(abs(value - later[0]) for value in later),
    }


def ages(
    name: str, truth: Mapping[str, Float[np.ndarray, "n 4"]], ticks: Sequence[Mapping[str, Any]]
) -> dict[str, float | None] | None:
    """Returns how right the ages of a stream are in the ticks in which the arm was moved; None where it has none.

    truth: by the lab's stream; columns as `experiments.phantom.lab.report.TRUTH_COLUMNS`.

    Keys: ticks, median_ms, p1_ms, p99_ms and largest_ms of (age in the log − true age), within: share of ticks within
    5 ms; within_when_settled: of those from 10 s on, None without any. unknown: ticks whose row the lab never sent.
    overlooked: share of ticks in which a row that had arrived 20 ms before was not seen.
    """
    stream, width_ms = _STREAMS[name]
    sent = truth[stream]
    sent = sent[np.isfinite(sent[:, 3])]
    sent = sent[np.argsort(sent[:, 3], kind="stable")]
    taken, stamped, _, arrived = sent.T
    errors, settled, unknown, overlooked, count = [], [], 0, 0, 0
    for tick in ticks:
        age_ms = (tick.get("age_ms") or {}).get(name)
        if tick["mode"] != "run" or age_ms is None:
            continue
        count += 1
        moment, age = tick["timestamp"], age_ms / 1e3
        stamp = moment - age - tick["clock_s"][name]
        first, last = np.searchsorted(arrived, [moment - _RECENT_S, moment + 1e-3])
        ahead_ms = 1e3 * (stamped[first:last] - stamp)
        fits = np.flatnonzero((ahead_ms > -0.5) & (ahead_ms < width_ms))
        if not len(fits):
            unknown += 1
            continue
        found = first + fits[np.argmin(np.abs(ahead_ms[fits]))]
        seen_taken = taken[found] - (stamped[found] - stamp)
        errors.append(1e3 * (age - (moment - seen_taken)))
        if moment >= ticks[0]["timestamp"] + SETTLED_S:
            settled.append(errors[-1])
        before = np.searchsorted(arrived, moment - RECEIVED_WITHIN_S)
        overlooked += bool(before > first and taken[first:before].max() > seen_taken + 1e-3)
    if not errors:
        return None
    p1, median, p99 = np.quantile(errors, [0.01, 0.5, 0.99]).tolist()
    return {
        "ticks": count,
        "median_ms": median,
        "p1_ms": p1,
        "p99_ms": p99,
        "largest_ms": float(np.abs(errors).max()),
        "within": _within(errors),
        "within_when_settled": _within(settled) if settled else None,
        "unknown": unknown,
        "overlooked": overlooked / count,
    }


def _within(errors_ms: Sequence[float]) -> float:
    return float(np.mean(np.abs(errors_ms) <= AGE_TOLERANCE_MS))


def _features_age(ticks: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    found = [tick["age_ms"].get("features") for tick in ticks if tick["mode"] == "run"]
    found = [age for age in found if age is not None]
    if not found:
        return None
    p10, p50, p99 = np.quantile(found, [0.1, 0.5, 0.99]).tolist()
    return {"p10": p10, "p50": p50, "p99": p99, "max": max(found)}


def _streams(told: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Returns what was sent while somebody listened, received and lost, and rates in messages or rows a second."""
    rows = {"sensor": "sensor_rows", "robot": "state_rows"}
    found = {}
    for stream, sent in told["streams"].items():
        received = counts.get(f"{stream}/messages", 0)
        found[stream] = {
            "sent": sent.get("sent", 0),
            "received": received,
            "hz": sent.get("sent", 0) * (ROWS_PER_BATCH if stream == "sensor" else 1) / told["seconds"],
        }
        if stream in rows:
            found[stream]["rows"] = counts.get(f"{rows[stream]}/received", 0)
            found[stream]["rows_lost"] = counts.get(f"{rows[stream]}/lost", 0)
    return found
