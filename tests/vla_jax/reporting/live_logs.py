"""Logs of live runs, made without one."""

import json
import math
from pathlib import Path
from typing import Any


def tick(k: int, **fields: Any) -> dict[str, Any]:
    """Returns the line of tick k of a quiet run; every tenth is 5 ms late."""
    moved = [0.0, 0.0, -0.1 - 0.01 * math.sin(k), 0.0, 0.0, 0.0, 1.0]
    return {
        "kind": "tick",
        "timestamp": 1_790_000_000.0 + 0.1 * k,
        "episode": 1 + k // 50,
        "action_id": k % 50,
        "late_ms": 5.0 if k % 10 == 0 else 0.2,
        "missed": 0,
        "mode": "run",
        "vl_update_number": k // 3,
        "sensor_encoding_time": 0.4,
        "action_prediction_time": 4.0,
        "total_time": 4.6,
        "buffers": {"sensor": 650, "state": 100, "features": 1},
        "queue": 7,
        "age_ms": {"state": 11.0, "sensor": 21.0, "features": 400.0 + 100 * (k % 3), "View1": None},
        "clock_s": {"state": 0.0, "sensor": -3.0},
        "sensor_to_command_ms": 26.0,
        "memory_mb": 800.0 + 0.1 * k,
        "raw_action": moved,
        "action": moved,
        "sent": True,
        "intervention": None,
        "reasons": [],
    } | fields


def event(k: int, name: str, text: str = "") -> dict[str, Any]:
    """Returns the line of an event at tick k."""
    return {"kind": "event", "timestamp": 1_790_000_000.0 + 0.1 * k, "event": name, "text": text}


def write_log(folder: Path, entries: list[dict[str, Any]], tail: str = "") -> Path:
    """Writes ticks.jsonl. tail: what a kill left of the last line."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / "ticks.jsonl").write_text(text + tail)
    return folder
