"""The features that a packed data set has in LeRobot's words."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.recordings.lerobot.meaning import SENSOR_VALID

STATE, ACTION, SENSOR = "observation.state", "action", "observation.sensor"
BOOKKEEPING = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


def camera_key(view: str) -> str:
    """Returns the feature of a view."""
    return f"observation.images.{view}"


def number_features(dataset: PackedDataset, episodes: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Returns the features of numbers, as `meta/info.json` describes them, that all these episodes have.

    What LeRobot has no words for stands under "info": units, and the rate of the sensor's rows.
    """
    spec, features = dataset.spec, {}
    if spec.state and all(dataset.raw_episodes[i]["state_names"] for i in episodes):
        features[STATE] = _vector(spec.state)
    features[ACTION] = _vector(spec.actions.names) | {"info": {"units": list(spec.actions.units)}}
    if any(dataset.episodes[i].has_sensor for i in episodes):
        shape = [dataset.meta.sensor_window_size, dataset.sensor.shape[1]]
        features[SENSOR] = {
            "dtype": "float32",
            "shape": shape,
            "names": ["rows", "channels"],
            "info": {"hz": dataset.meta.sensor_hz},
        }
        features[SENSOR_VALID] = {"dtype": "bool", "shape": [1], "names": None}
    return features


def _vector(names: Sequence[str]) -> dict[str, Any]:
    return {"dtype": "float32", "shape": [len(names)], "names": list(names)}


def number_values(dataset: PackedDataset, key: str, ticks: np.ndarray) -> np.ndarray:
    """Returns the values of a feature at some ticks, (n, *shape)."""
    if key == STATE:
        return dataset.ticks.pose[ticks].astype(np.float32)
    if key == ACTION:
        return np.asarray(dataset.ticks.delta[ticks], np.float32)
    if key == SENSOR:
        return dataset.sensor_windows(ticks).astype(np.float32)
    assert key == SENSOR_VALID
    return dataset.has_sensor(ticks)[:, None]
