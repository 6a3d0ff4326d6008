"""What the log of a live run says (`vla_jax.live.log`), as arrays; damaged lines are passed over."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from vla_jax.errors import UserError
from vla_jax.live.log import MEMORY, TICKS_FILE, TIMINGS, summary_of_lines

_MAX_BYTES = 4 << 30
_LONGEST_LINE = 1 << 20


@dataclass(frozen=True)
class LiveRecord:
    """A run. Numbers that a tick does not have are NaN."""

    time_s: Float[np.ndarray, " n"]
    """Of each tick, since the first."""
    episode: Int[np.ndarray, " n"]
    missed: Int[np.ndarray, " n"]
    """Ticks that were skipped just before."""
    timings: Mapping[str, Float[np.ndarray, " n"]]
    """`TIMINGS`, ms."""
    ages_ms: Mapping[str, Float[np.ndarray, " n"]]
    """How old the newest of each stream was."""
    action: Float[np.ndarray, "n a"]
    """After the limits."""
    raw_action: Float[np.ndarray, "n a"]
    """As the policy gave it."""
    is_sent: Bool[np.ndarray, " n"]
    intervention: tuple[str | None, ...]
    """limit, hold or stop; None where nobody intervened."""
    reasons: tuple[tuple[str, ...], ...]
    events: tuple[tuple[float, str, str], ...]
    """Seconds since the first tick, the event's name and its text."""
    summary: Mapping[str, Any]
    """`vla_jax.live.log.summary_of_lines`."""
    damaged_lines: int

    @property
    def num_ticks(self) -> int:
        """n."""
        return len(self.time_s)

    @property
    def missed_share(self) -> float:
        """Which part of all ticks that should have been was missed."""
        missed = int(self.missed.sum())
        return missed / (missed + self.num_ticks)

    def by_episode(self) -> dict[int, Bool[np.ndarray, " n"]]:
        """Returns the ticks of each episode; 0 is before the first."""
        return {int(number): self.episode == number for number in np.unique(self.episode)}


def read_live_record(log: Path) -> LiveRecord:
    """Reads a log: its directory, or the file of its lines.

    Raises:
        UserError: there is none, or it holds no tick.
    """
    path = log / TICKS_FILE if log.is_dir() else log
    if not path.is_file():
        raise UserError(f"{log}: holds no log of a live run; live writes one with --log")
    if path.stat().st_size > _MAX_BYTES:
        raise UserError(f"{path}: is larger than {_MAX_BYTES >> 30} GiB")
    ticks: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    lines: list[str] = []
    damaged = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            entry = _entry(line)
            if entry is None:
                damaged += 1
                continue
            (ticks if entry["kind"] == "tick" else events).append(entry)
            lines.append(line)
    if not ticks:
        raise UserError(f"{path}: holds no tick")
    return _record(ticks, events, summary_of_lines(lines), damaged)


def _entry(line: str) -> dict[str, Any] | None:
    """Returns a line's tick or event; None where it is neither, or says of something what it cannot be."""
    try:
        entry = json.loads(line) if len(line) <= _LONGEST_LINE else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.get("kind") not in ("tick", "event"):
        return None
    ages, reasons = entry.get("age_ms") or {}, entry.get("reasons") or []
    numbers = [entry.get(name) for name in (*TIMINGS, MEMORY, "missed", "episode")]
    if isinstance(ages, dict):
        numbers += ages.values()
    for name in ("action", "raw_action"):
        values = entry.get(name)
        numbers += values if isinstance(values, list) else [] if values is None else [values]
    fits = (
        isinstance(ages, dict)
        and isinstance(reasons, list)
        and all(isinstance(reason, str) for reason in reasons)
        and isinstance(entry.get("intervention"), str | None)
        and math.isfinite(_number(entry.get("timestamp")))
        and all(value is None or math.isfinite(_number(value)) for value in numbers)
    )
    return entry if fits else None


def _record(
    ticks: list[dict[str, Any]], events: list[dict[str, Any]], summary: Mapping[str, Any], damaged: int
) -> LiveRecord:
    start = _number(ticks[0]["timestamp"])
    streams = dict.fromkeys(name for tick in ticks for name in tick.get("age_ms") or {})
    widths = Counter(len(tick["action"]) for tick in ticks if isinstance(tick.get("action"), list))
    width = widths.most_common(1)[0][0] if widths else 0
    return LiveRecord(
        time_s=np.array([_number(tick["timestamp"]) - start for tick in ticks]),
        episode=np.array([int(tick.get("episode") or 0) for tick in ticks]),
        missed=np.array([int(tick.get("missed") or 0) for tick in ticks]),
        timings={name: np.array([_number(tick.get(name)) for tick in ticks]) for name in TIMINGS},
        ages_ms={
            name: np.array([_number((tick.get("age_ms") or {}).get(name)) for tick in ticks])
            for name in streams
        },
        action=_rows(ticks, "action", width),
        raw_action=_rows(ticks, "raw_action", width),
        is_sent=np.array([tick.get("sent") is True for tick in ticks]),
        intervention=tuple(tick.get("intervention") for tick in ticks),
        reasons=tuple(tuple(tick.get("reasons") or ()) for tick in ticks),
        events=tuple(
            (_number(event["timestamp"]) - start, str(event.get("event")), str(event.get("text") or ""))
            for event in events
        ),
        summary=summary,
        damaged_lines=damaged,
    )


def _rows(ticks: list[dict[str, Any]], name: str, width: int) -> np.ndarray:
    rows = np.full((len(ticks), width), np.nan)
    for row, tick in zip(rows, ticks, strict=True):
        values = tick.get(name)
        if isinstance(values, list) and len(values) == width:
            row[:] = [_number(value) for value in values]
    return rows


def _number(value: object) -> float:
    """Returns a number; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e15:
        return math.nan
    return float(value)
