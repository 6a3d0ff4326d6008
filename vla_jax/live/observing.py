"""What a policy is shown at a tick, of live streams: chosen as `prepare` chooses it, into arrays made once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from vla_jax.contracts.specs import StateWindow
from vla_jax.dataset.tick_columns import MAX_SENSOR_AGE_SECONDS
from vla_jax.live.features import Features
from vla_jax.live.newest import NewestOfAll
from vla_jax.policy.insertion_policy import InsertionPolicy
from vla_jax.timing import past_moments

STATE, SENSOR, FEATURES, PICTURES = "state", "sensor", "features", "pictures"
"""Names of what has an age."""
_FORCE_ROWS = 65


@dataclass(frozen=True)
class Seen:
    """What is known at a tick. Arrays are the observer's own, written again at the next tick."""

    moment: float
    pose: Float[np.ndarray, " p"] | None
    """The newest; None before the first."""
    force: Float[np.ndarray, " t"] | None
    """The sensor's force in the newest rows; None without."""
    times: Mapping[str, float]
    """Name (`state`, `sensor`, `features`, each view) → when what is seen of it was taken; absent where nothing is.
    `pictures` is when any picture last came."""

    def age(self, name: str) -> float | None:
        """Returns how old something is, seconds; None where there is nothing."""
        return self.moment - self.times[name] if name in self.times else None


class Observer:
    """Puts observations of one policy together."""

    def __init__(self, policy: InsertionPolicy, newest: NewestOfAll) -> None:
        example = policy.example()
        assert example.vl is not None, "every policy reads features"
        self._newest = newest
        self._pose = np.zeros(len(policy.data.state))
        self._parts: dict[str, Any] = {
            "vl": np.zeros(example.vl.shape, np.float32),
            "vl_mask": np.zeros(example.vl.shape[:2], bool),
            "sensor": None,
            "has_sensor": np.zeros(1, bool),
        }
        self._window = np.zeros((_FORCE_ROWS, 0), np.float32)
        if newest.rows is not None:
            rows = _FORCE_ROWS if example.sensor is None else example.sensor.shape[1]
            sensor = np.zeros((1, rows, newest.rows.width), np.float32)
            self._parts["sensor"], self._window = sensor, sensor[0]
        if policy.config.state is not None:
            self._parts["state"] = np.zeros((1, len(policy.data.state)), np.float32)
        self._state_window, self._tick_s = policy.state_window, 1.0 / policy.data.actions.control_hz
        if self._state_window is not None:
            shape = (1, self._state_window.rows, len(policy.data.state))
            self._parts |= {"state_window": np.zeros(shape), "state_window_mask": np.zeros(shape[:2], bool)}
        if policy.config.age is not None:
            self._parts["feature_age"] = np.zeros(1, np.float32)
        if policy.config.head.needs_previous_chunk:
            shape = (1, policy.data.actions.horizon, policy.data.actions.size)
            self._parts["z_chunk"] = np.zeros(shape, np.float32)

    def look(
        self,
        moment: float,
        features: Features | None,
        previous_action: Float[np.ndarray, " a"],
        began_at: float = -np.inf,
    ) -> Seen:
        """Takes what is newest at a moment, our clock. previous_action: executed last. began_at: when the episode
        began; poses from before it are none of its last ones."""
        newest, parts, times = self._newest, self._parts, {}
        state_time = newest.states.newest(moment, self._pose)
        has_pose = bool(np.isfinite(state_time))
        if has_pose:
            times[STATE] = state_time
            if "state" in parts:
                parts["state"][0] = self._pose
        if self._state_window is not None:
            self._look_back(moment, began_at, self._state_window)
        has_sensor = False
        if newest.rows is not None:
            time = newest.rows.window(moment, MAX_SENSOR_AGE_SECONDS, self._window)
            has_sensor = bool(np.isfinite(time))
            if has_sensor:
                times[SENSOR] = time
        parts["has_sensor"][0] = has_sensor
        if features is not None:
            parts["vl"][0], parts["vl_mask"][0] = features.vl, features.vl_mask
            times[FEATURES] = features.oldest
            if "feature_age" in parts:
                parts["feature_age"][0] = moment - features.oldest
        if "z_chunk" in parts:
            parts["z_chunk"][:] = previous_action
        if np.isfinite(newest.pictures.received):
            times[PICTURES] = newest.pictures.received
        times |= {view: picture.time for view, picture in newest.pictures.newest(moment).items()}
        return Seen(
            moment,
            self._pose if has_pose else None,
            self._window[:, 0] if has_sensor else None,
            times,
        )

    def _look_back(self, moment: float, began_at: float, window: StateWindow) -> None:
        """Takes the last poses; those that are missing repeat the newest."""
        poses, there = self._parts["state_window"][0], self._parts["state_window_mask"][0]
        poses[:] = self._pose
        moments = past_moments(moment, window.rows, window.every * self._tick_s)
        there[:] = self._newest.states.newest_at(moments, began_at, poses)

    @property
    def parts(self) -> Mapping[str, Any]:
        """The arguments of `InsertionPolicy.predict` for what was last looked at."""
        return self._parts
