"""What a live run did: a JSON line for each tick and event, and a summary that can be made of the lines again.

Lines are written by a thread of their own and flushed when none is waiting, so that a killed run keeps all but the
last.
"""

import json
import math
import queue
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.errors import UserError
from vla_jax.storage.replacing import replace_text

TICKS_FILE, SUMMARY_FILE = "ticks.jsonl", "summary.json"
_MAX_WAITING = 10_000
TIMINGS = ("late_ms", "sensor_encoding_time", "action_prediction_time", "total_time", "sensor_to_command_ms")
"""Times of a tick in ms that the summary has the distribution of, as of each entry of `age_ms`, and of MEMORY."""
MEMORY = "memory_mb"


class LiveLog:
    """Writes the lines of a run below a directory. `tick` and `event` never wait.

    Attributes:
        more: other entries of the summary.
        failure: why lines are lost; None while they are not.
    """

    def __init__(self, directory: Path) -> None:
        """Raises UserError where the directory holds a log already, or cannot be written."""
        self._path = directory / TICKS_FILE
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "x", encoding="utf-8")  # noqa: SIM115, closed by the thread
        except FileExistsError:
            raise UserError(f"{directory}: holds a log already; name another directory with --log") from None
        except OSError as error:
            raise UserError(f"{directory}: cannot write the log ({error.strerror or error})") from error
        self._lines: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self.more: dict[str, Any] = {}
        self.failure: str | None = None
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def tick(self, fields: Mapping[str, Any]) -> None:
        """Logs a tick; its fields are in docs/robot.md."""
        self._put({"kind": "tick", **fields})

    def event(self, timestamp: float, event: str, text: str = "", **fields: Any) -> None:
        """Logs that something happened."""
        self._put({"kind": "event", "timestamp": timestamp, "event": event, "text": text, **fields})

    def close(self) -> None:
        """Writes what is waiting, and the summary. Raises UserError where lines were lost."""
        self._lines.put(None)
        self._thread.join()
        if self.failure is not None:
            raise UserError(self.failure)
        with open(self._path, encoding="utf-8") as lines:
            summary = summary_of_lines(lines) | self.more
        replace_text(self._path.with_name(SUMMARY_FILE), json.dumps(summary, indent=2) + "\n")

    def _put(self, fields: Mapping[str, Any]) -> None:
        if self._lines.qsize() < _MAX_WAITING:
            self._lines.put(fields)

    def _write(self) -> None:
        try:
            with self._file as file:
                while True:
                    fields = self._lines.get()
                    if fields is None:
                        return
                    file.write(json.dumps(_plain(fields), ensure_ascii=False) + "\n")
                    if self._lines.empty():
                        file.flush()
        except OSError as error:  # A full disk is no reason to stop an arm in the middle of an insertion.
            self.failure = f"{self._path}: cannot be written ({error.strerror or error})"


def summary_of_lines(lines: Iterable[str]) -> dict[str, Any]:
    """Returns the summary of a log's lines; the last one may be cut off.

    Keys: ticks, missed, seconds, episodes, sent, interventions (reason → ticks), events (name → how often), and
    statistics: name → count, mean, p50, p95, p99, max.
    """
    values: dict[str, list[float]] = defaultdict(list)
    interventions: Counter[str] = Counter()
    events: Counter[str] = Counter()
    ticks = missed = sent = episodes = 0
    times: list[float] = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict):
            continue
        if entry.get("kind") == "event":
            events[str(entry.get("event"))] += 1
            continue
        if entry.get("kind") != "tick":
            continue
        ticks += 1
        missed += int(entry.get("missed") or 0)
        sent += bool(entry.get("sent"))
        episodes = max(episodes, int(entry.get("episode") or 0))
        times.append(entry["timestamp"])
        if entry.get("intervention"):
            interventions.update(entry.get("reasons") or [entry["intervention"]])
        ages = {f"age_ms/{name}": age for name, age in (entry.get("age_ms") or {}).items()}
        for name, value in ({name: entry.get(name) for name in (*TIMINGS, MEMORY)} | ages).items():
            if value is not None:
                values[name].append(value)
    return {
        "ticks": ticks,
        "missed": missed,
        "sent": sent,
        "seconds": times[-1] - times[0] if times else 0.0,
        "episodes": episodes,
        "statistics": {name: _distribution(of_name) for name, of_name in values.items()},
        "interventions": dict(interventions.most_common()),
        "events": dict(events),
    }


def _distribution(values: list[float]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(values, (50, 95, 99)).tolist()
    return {
        "count": len(values),
        "mean": float(np.mean(values)),
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "max": float(np.max(values)),
    }


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it: arrays are lists, what is not finite is null."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, np.ndarray | tuple | list):
        return [_plain(inner) for inner in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
