"""Before anything is sent: are all streams there, and are they what the policy was trained on?"""

import time
from collections.abc import Callable
from dataclasses import replace

from vla_jax.contracts.specs import DataSpec, SensorSpec
from vla_jax.errors import UserError
from vla_jax.live.newest import NewestOfAll
from vla_jax.live.robot_link import RobotLink
from vla_jax.policy.insertion_policy import InsertionPolicy

RATE_TOLERANCE = 0.05
"""A measured rate this near to the trained one is that one."""
MEASURED_FOR_S = 0.3
_POLL_S = 0.05


def wait_for_streams(
    policy: InsertionPolicy, newest: NewestOfAll, timeout_s: float, watch: Callable[[], None]
) -> None:
    """Waits until everything that the policy reads has come. watch: called meanwhile.

    Raises:
        UserError: something has not, in `timeout_s` seconds.
    """
    until = time.monotonic() + timeout_s
    measured_until = 0.0
    while missing := _missing(policy, newest):
        if time.monotonic() > until:
            raise UserError(
                f"nothing came from {', '.join(missing)} within {timeout_s:g} s; are their programs running, and are "
                "--robot and the ports right?"
            )
        watch()
        time.sleep(_POLL_S)
        measured_until = time.monotonic() + MEASURED_FOR_S
    while time.monotonic() < measured_until:  # For the rates.
        watch()
        time.sleep(_POLL_S)


def live_spec(policy: InsertionPolicy, link: RobotLink, newest: NewestOfAll) -> DataSpec:
    """Returns what the live streams are, to be compared with what the policy was trained on."""
    trained, sensor = policy.data, link.sensor
    if sensor is not None:
        sensor = SensorSpec(sensor.channels, None, _rate(newest, sensor, trained.sensor))
    return replace(
        trained,
        actions=replace(link.actions, horizon=trained.actions.horizon),
        views=tuple(view for view in trained.views or () if view in newest.pictures.views),
        sensor=sensor,
        state=link.state,
    )


def check_policy(policy: InsertionPolicy, link: RobotLink, newest: NewestOfAll) -> None:
    """Raises UserError with every difference between the live streams and what the policy was trained on."""
    differences = policy.differences(live_spec(policy, link, newest), policy.features)
    if differences:
        raise UserError(f"the policy is not for these streams: {'; '.join(differences)}")


def _missing(policy: InsertionPolicy, newest: NewestOfAll) -> list[str]:
    missing = [view for view in policy.data.views or () if view not in newest.pictures.views]
    if newest.last_state is None:
        missing.append("the robot's state")
    if policy.config.uses_sensor and newest.rows is not None and not len(newest.rows):
        missing.append("the sensor")
    return missing


def _rate(newest: NewestOfAll, sensor: SensorSpec, trained: SensorSpec | None) -> float | None:
    measured = None if newest.rows is None else newest.rows.rate_hz
    nominal = sensor.hz if trained is None or trained.hz is None else trained.hz
    if measured is None or nominal is None or abs(measured / nominal - 1) <= RATE_TOLERANCE:
        return nominal
    return round(measured, 1)
