"""What the columns of a data set mean: what was asked for, and good guesses for the rest."""

import re
from dataclasses import dataclass
from typing import Literal

from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.lerobot.index import DataSetIndex, Feature
from vla_jax.recordings.lerobot.poses import POSE_SIZES, Rotation

SENSOR_VALID = "observation.has_sensor"
"""A feature of one bool: whether the row's sensor window was recorded. Our writer's; others need none."""


@dataclass(frozen=True)
class LeRobotOptions:
    """What the columns of a LeRobot data set mean; a feature is named by its key in meta/info.json."""

    state_feature: str | None = None
    """LeRobot: what is recorded as the robot's state; observation.state by default."""
    action_feature: str | None = None
    """LeRobot: the actions as recorded; action by default."""
    action_units: tuple[str, ...] = ()
    """LeRobot: unit of each number of the recorded actions, for instance mm deg none. The format has no place for them,
    only data sets written by vla-jax say them; errors are reported in mm and degrees where they are so."""
    pose_feature: str | None = None
    """LeRobot: makes actions of this feature instead of recorded ones: what its pose (x y z and a rotation) changes
    from row to row, in mm and degrees."""
    pose_rotation: Rotation = "euler_deg"
    """LeRobot: how that pose says its rotation. Of Euler angles the differences are taken; of others, the rotation from
    each row to the next in the base frame."""
    pose_length: Literal["m", "mm"] = "m"
    """LeRobot: unit of that pose's x y z, m or mm."""
    gripper: str | None = None
    """LeRobot: FEATURE or FEATURE[NUMBER], the gripper beside the pose's changes; by default the number after the pose,
    or the one of the actions that is called gripper."""
    sensor_feature: str | None = None
    """LeRobot: sensor window [rows, channels] of each row, or a vector; by default the one window that there is."""
    sensor_hz: float | None = None
    """LeRobot: rows a second in a sensor window; by default what the data set says, else as if windows abut."""
    row_stride: int = 1
    """LeRobot: rows per control tick; 3 takes each third row of 30 a second, for actions at 10 Hz."""


@dataclass(frozen=True)
class Meaning:
    """The features taken. One of actions and pose is there; gripper: a feature and which of its numbers."""

    state: Feature | None
    actions: Feature | None
    units: tuple[str, ...]
    pose: Feature | None
    gripper: tuple[Feature, int] | None
    sensor: Feature | None
    sensor_hz: float
    sensor_valid: Feature | None
    views: tuple[Feature, ...]
    rate_hz: float

    def rows(self, index: DataSetIndex, options: LeRobotOptions) -> tuple[tuple[str, str], ...]:
        """Returns what was taken for what, for a table."""
        actions = "–"
        if self.actions is not None:
            units = " ".join(unit or "none" for unit in self.units)
            actions = f"{_text(self.actions)} as recorded, units: {units if any(self.units) else 'not known'}"
        elif self.pose is not None:
            actions = f"changes of {_text(self.pose)}, {options.pose_rotation}, {options.pose_length}"
            actions += (
                f"; gripper {self.gripper[0].key}[{self.gripper[1]}]" if self.gripper else "; no gripper"
            )
        sensor = "none"
        if self.sensor is not None:
            sensor = f"{_text(self.sensor)}, {self.sensor_hz:g} rows/s"
        every = f", every {options.row_stride} rows" if options.row_stride > 1 else ""
        return (
            ("version", f"{index.version}, {index.fps:g} rows/s{every}"),
            (
                "views",
                ", ".join(f"{camera.view} ({camera.dtype} {_size(camera)})" for camera in self.views)
                or "none",
            ),
            ("state", "none" if self.state is None else _text(self.state)),
            ("actions", actions),
            ("sensor", sensor),
            ("prompt", f"the task of each row, {len(index.tasks)} in all"),
        )


def find_meaning(index: DataSetIndex, options: LeRobotOptions) -> Meaning:
    """Decides what a data set's columns mean.

    Raises:
        EpisodeError: what was asked for is not there, or does not fit; there are no actions.
    """
    if options.row_stride < 1:
        raise EpisodeError(f"--row-stride {options.row_stride} is impossible; give at least 1")
    pose = actions = None
    if options.pose_feature is not None:
        pose = _named(index, options.pose_feature, "--pose-feature")
        if pose.shape[0] < POSE_SIZES[options.pose_rotation] or len(pose.shape) != 1:
            raise EpisodeError(
                f"--pose-feature {pose.key}: has the shape {pose.shape}; {options.pose_rotation} needs "
                f"{POSE_SIZES[options.pose_rotation]} numbers"
            )
    else:
        actions = _chosen(index, options.action_feature, "--action-feature", "action")
        if actions is None:
            raise EpisodeError(f"has no feature action; name one with --action-feature: {_listed(index)}")
        if len(actions.shape) != 1:
            raise EpisodeError(
                f"--action-feature {actions.key}: has the shape {actions.shape}, expected a vector"
            )
    state = _chosen(index, options.state_feature, "--state-feature", "observation.state")
    if state is not None and len(state.shape) != 1:
        raise EpisodeError(f"--state-feature {state.key}: has the shape {state.shape}, expected a vector")
    sensor = _sensor(index, options)
    return Meaning(
        state,
        actions,
        _units(actions, options),
        pose,
        None if pose is None else _gripper(index, pose, options),
        sensor,
        _sensor_hz(index, sensor, options),
        index.features.get(SENSOR_VALID) if sensor is not None else None,
        index.cameras,
        index.fps / options.row_stride,
    )


def _named(index: DataSetIndex, key: str, option: str) -> Feature:
    feature = index.features.get(key)
    if feature is None or not feature.is_numbers:
        raise EpisodeError(f"{option} {key}: there is no such feature of numbers; there are {_listed(index)}")
    return feature


def _chosen(index: DataSetIndex, key: str | None, option: str, default: str) -> Feature | None:
    if key is not None:
        return _named(index, key, option)
    feature = index.features.get(default)
    return feature if feature is not None and feature.is_numbers else None


def _units(actions: Feature | None, options: LeRobotOptions) -> tuple[str, ...]:
    if actions is None:
        return ()
    if options.action_units and len(options.action_units) != actions.size:
        raise EpisodeError(
            f"--action-units: {len(options.action_units)} are given, {actions.key} has {actions.size}"
        )
    told = actions.info.get("units")
    is_told = (
        isinstance(told, list) and len(told) == actions.size and all(isinstance(unit, str) for unit in told)
    )
    given = options.action_units or (tuple(told) if is_told else ())
    return tuple("" if unit == "none" else unit for unit in given) or ("",) * actions.size


def _gripper(index: DataSetIndex, pose: Feature, options: LeRobotOptions) -> tuple[Feature, int] | None:
    size = POSE_SIZES[options.pose_rotation]
    if options.gripper is None:
        if pose.size == size + 1:
            return pose, size
        action = index.features.get("action")
        names = () if action is None or not action.is_numbers else action.dim_names
        places = [i for i, name in enumerate(names) if "gripper" in name.lower()]
        return (action, places[0]) if action is not None and len(places) == 1 else None
    found = re.fullmatch(r"([^\[\]]+)(?:\[(\d{1,6})\])?", options.gripper)
    if found is None:
        raise EpisodeError(f"--gripper {options.gripper!r} is not FEATURE or FEATURE[NUMBER]")
    feature, place = _named(index, found[1], "--gripper"), int(found[2] or 0)
    if place >= feature.size or (found[2] is None and feature.size > 1):
        raise EpisodeError(
            f"--gripper {options.gripper}: {feature.key} has {feature.size} numbers; say which, from 0"
        )
    return feature, place


def _sensor(index: DataSetIndex, options: LeRobotOptions) -> Feature | None:
    if options.sensor_feature is not None:
        sensor = _named(index, options.sensor_feature, "--sensor-feature")
        if len(sensor.shape) > 2:
            raise EpisodeError(
                f"--sensor-feature {sensor.key}: has the shape {sensor.shape}, expected (rows, channels) or (channels,)"
            )
        return sensor
    windows = [
        feature
        for key, feature in index.features.items()
        if key.startswith("observation.") and feature.is_numbers and len(feature.shape) == 2
    ]
    return windows[0] if len(windows) == 1 and windows[0].shape[1] > 1 else None


def _sensor_hz(index: DataSetIndex, sensor: Feature | None, options: LeRobotOptions) -> float:
    if sensor is None:
        return 0.0
    told = options.sensor_hz if options.sensor_hz is not None else sensor.info.get("hz")
    window = sensor.shape[0] if len(sensor.shape) == 2 else 1
    if told is None:
        return window * index.fps / options.row_stride
    if isinstance(told, bool) or not isinstance(told, int | float) or not 0 < told < 1e7:
        raise EpisodeError(f"sensor: {str(told)[:40]} rows a second are impossible")
    return float(told)


def _text(feature: Feature) -> str:
    names = feature.names or ()
    listed = ", ".join(names if len(names) <= 10 else (*names[:2], "…", names[-1]))
    return f"{feature.key} [{_size(feature)}]" + (f" ({listed})" if listed else "")


def _size(feature: Feature) -> str:
    return "×".join(map(str, feature.shape))


def _listed(index: DataSetIndex) -> str:
    return ", ".join(key for key, feature in index.features.items() if feature.is_numbers)[:300]
