"""Data sets of version 2, as this program reads them: their arrays are the same, their descriptions said less."""

from collections.abc import Mapping, Sequence
from typing import Any

from vla_jax.contracts.specs import LAB_ACTIONS, LAB_STATE, SensorSpec

OLD_VERSION = 2
# Of their episodes, which today's `prepare` reads again: ticks with stale pictures were samples.
OLD_EPISODE_VERSION = 3


def upgraded_index(index: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Returns `dataset.json` as `version` has it, but for the spec."""
    options = dict(index["part_options"])
    own = {
        "legacy": ("allow_external_images", options.pop("allow_external_images"), False),
        "capture": ("match_limit_ms", 1000 * options.pop("match_limit"), 10.0),
    }
    readers = {kind: {name: value} for kind, (name, value, default) in own.items() if value != default}
    return {
        "format_version": version,
        "meta": {**index["meta"], "format_version": version},
        "columns": [],
        "episode_options": {**options, "readers": readers, "version": OLD_EPISODE_VERSION},
        "split": index["split"],
        "content": index["content"],
    }


def upgraded_entries(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the objects of `episodes.json`; all of version 2 were recorded in the lab's formats."""
    return [
        {
            **entry,
            "sensor_channels": SensorSpec().channels,
            "state_names": [] if entry["pose_hz"] is None else list(LAB_STATE),
            "action_names": list(LAB_ACTIONS.names),
            "action_units": list(LAB_ACTIONS.units),
            "in_whole_chunks": entry["format"] == "legacy",
        }
        for entry in entries
    ]
