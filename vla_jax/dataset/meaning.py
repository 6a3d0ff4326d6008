"""What a data set's samples mean, from its settings, episodes and statistics."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vla_jax.contracts.specs import ActionSpec, DataSpec, SensorSpec
from vla_jax.storage.config_json import from_json, to_json


def spec_to_json(
    meta: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], statistics: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the spec of a data set as JSON values.

    meta: fields of `PackedMeta`; entries: its episodes, at least one; statistics: of the training episodes; all three
    as the data set's JSON files hold them.
    """
    actions = statistics.get("actions")
    channels = [entry["sensor_channels"] for entry in entries if entry["has_sensor"]]
    states = [entry["state_names"] for entry in entries if entry["state_names"]]
    spec = DataSpec(
        actions=ActionSpec(
            names=tuple(entries[0]["action_names"]),
            units=tuple(entries[0]["action_units"]),
            horizon=meta["horizon"],
            rate_hz=meta["action_hz"],
            low=None if actions is None else tuple(actions["min"]),
            high=None if actions is None else tuple(actions["max"]),
        ),
        views=tuple(meta["views"]),
        sensor=SensorSpec(channels[0], meta["sensor_window_size"], meta["sensor_hz"]) if channels else None,
        state=tuple(states[0]) if states else (),
        alignment=meta["alignment"],
        refresh_ticks=meta["vlm_reuse_count"],
    )
    return json.loads(to_json(spec))


def spec_from_json(value: Mapping[str, Any], source: str) -> DataSpec:
    """Inverse of `spec_to_json`; `source` names the file in errors. Raises UserError."""
    return from_json(DataSpec, json.dumps(value), source=source)
