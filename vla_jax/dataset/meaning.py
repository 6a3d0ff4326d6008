"""What a data set's samples mean, from its settings, episodes and statistics."""

from collections.abc import Mapping, Sequence
from typing import Any

from vla_jax.contracts.specs import ActionSpec, DataSpec, SensorSpec
from vla_jax.dataset.statistics import FeatureStatistics


def data_spec(
    meta: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], statistics: Mapping[str, FeatureStatistics]
) -> DataSpec:
    """Returns the spec of a data set.

    meta: fields of `PackedMeta`; entries: its episodes as `episodes.json` holds them, at least one;
    statistics: of the training episodes.
    """
    actions = statistics.get("actions")
    channels = [entry["sensor_channels"] for entry in entries if entry["has_sensor"]]
    states = [entry["state_names"] for entry in entries if entry["state_names"]]
    return DataSpec(
        actions=ActionSpec(
            names=tuple(entries[0]["action_names"]),
            units=tuple(entries[0]["action_units"]),
            horizon=meta["horizon"],
            rate_hz=meta["action_hz"],
            low=None if actions is None else tuple(actions.min.tolist()),
            high=None if actions is None else tuple(actions.max.tolist()),
        ),
        views=tuple(meta["views"]),
        sensor=SensorSpec(channels[0], meta["sensor_window_size"], meta["sensor_hz"]) if channels else None,
        state=tuple(states[0]) if states else (),
        alignment=meta["alignment"],
        refresh_ticks=meta["vlm_reuse_count"],
    )
