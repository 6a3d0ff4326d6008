"""The limits of an arm, from what its policy was trained on where nobody says otherwise."""

import math

import numpy as np
from jaxtyping import Float

from vla_jax.errors import UserError
from vla_jax.live.limit_options import LimitOptions
from vla_jax.live.observing import FEATURES, PICTURES, SENSOR, STATE
from vla_jax.live.robot_link import RobotLink
from vla_jax.live.safety import SafetyLimits
from vla_jax.policy.insertion_policy import InsertionPolicy

FORCE_SPREADS = 12.0
"""Where no force limit is given: so many standard deviations of the training rows from their mean."""


def make_limits(
    options: LimitOptions, policy: InsertionPolicy, link: RobotLink, pose: Float[np.ndarray, " p"]
) -> SafetyLimits:
    """Returns the limits of an episode. pose: where it begins.

    Raises:
        UserError: the policy does not say what its training actions ranged over, and neither do the options.
    """
    low, high = _speed(options, policy)
    largest = np.maximum(np.abs(low), np.abs(high))
    is_constant = low == high
    change = np.where(is_constant, np.inf, largest * (options.max_acceleration or 1.0))
    pose_low, pose_high = pose - options.reach, pose + options.reach
    angles = [link.state.index(name) for name in link.angles]
    pose_low[angles], pose_high[angles] = pose[angles] - options.tilt, pose[angles] + options.tilt
    if options.workspace_low is not None and options.workspace_high is not None:
        pose_low[:3], pose_high[:3] = options.workspace_low, options.workspace_high
    ages = {STATE: options.state_age, FEATURES: options.feature_age, PICTURES: options.camera_gap}
    if policy.config.uses_sensor and link.sensor is not None:
        ages[SENSOR] = options.sensor_age
    return SafetyLimits(
        low=low.astype(np.float32),
        high=high.astype(np.float32),
        max_change=change.astype(np.float32),
        pose_low=pose_low,
        pose_high=pose_high,
        groups=[
            [axis for axis in policy.data.actions.dims(unit) if not is_constant[axis]]
            for unit in ("mm", "deg")
        ],
        angles=angles,
        force=_force(options, policy),
        max_age_s=ages,
        stop_after_s=options.stop_after,
    )


def _speed(options: LimitOptions, policy: InsertionPolicy) -> tuple[np.ndarray, np.ndarray]:
    actions = policy.data.actions
    low = None if actions.low is None else np.array(actions.low)
    high = None if actions.high is None else np.array(actions.high)
    if low is None or high is None:
        if options.max_speed is None or options.max_turn is None:
            raise UserError(
                "the policy does not know the range of its training actions; give --max-speed and --max-turn"
            )
        low, high = np.full(actions.size, -np.inf), np.full(actions.size, np.inf)
    for unit, largest in (("mm", options.max_speed), ("deg", options.max_turn)):
        if largest is not None:
            of_unit = list(actions.dims(unit))
            low[of_unit], high[of_unit] = -largest, largest
    # Nothing has to move: standing still is within any limit.
    moves = low != high
    return np.where(moves, np.minimum(low, 0.0), low), np.where(moves, np.maximum(high, 0.0), high)


def _force(options: LimitOptions, policy: InsertionPolicy) -> tuple[float, float]:
    normaliser = policy.loaded.normaliser
    low, high = options.min_force, options.max_force
    if policy.data.sensor is not None:
        middle = float(np.asarray(normaliser.force_offset))
        spread = FORCE_SPREADS * float(np.asarray(normaliser.force_scale))
        low, high = middle - spread if low is None else low, middle + spread if high is None else high
    return -math.inf if low is None else low, math.inf if high is None else high
