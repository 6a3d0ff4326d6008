"""The limits of an arm: from the training actions where nobody says otherwise."""

import dataclasses
import math

import numpy as np
import pytest

from tests.vla_jax.live.live_policies import FORCE, FORCE_SPREAD, HIGH, LOW, lab_data, lab_policy
from tests.vla_jax.live.test_live_loop import POSE, Link
from vla_jax.errors import UserError
from vla_jax.live.limit_options import LimitOptions
from vla_jax.live.limits import FORCE_SPREADS, make_limits


@pytest.fixture(scope="module")
def policy():
    return lab_policy()


def test_by_default_the_arm_moves_as_it_did_in_training(policy):
    limits = make_limits(LimitOptions(), policy, Link(), POSE)
    np.testing.assert_allclose(limits.low, LOW)
    np.testing.assert_allclose(limits.high, HIGH)
    np.testing.assert_allclose(limits.max_change[:6], np.maximum(np.abs(LOW), HIGH)[:6])
    np.testing.assert_allclose(limits.pose_high - POSE, [50, 50, 50, 30, 30, 30])
    np.testing.assert_allclose(POSE - limits.pose_low, [50, 50, 50, 30, 30, 30])
    assert limits.force == pytest.approx(
        (FORCE - FORCE_SPREADS * FORCE_SPREAD, FORCE + FORCE_SPREADS * FORCE_SPREAD)
    )
    assert set(limits.max_age_s) == {"state", "sensor", "features", "pictures"}


def test_options_replace_them(policy):
    options = LimitOptions(
        max_speed=0.1,
        max_turn=0.2,
        max_acceleration=0.5,
        workspace_low=(180.0, -10.0, 40.0),
        workspace_high=(200.0, 10.0, 70.0),
        tilt=5.0,
        max_force=3.0,
    )
    limits = make_limits(options, policy, Link(), POSE)
    np.testing.assert_allclose(limits.high, [0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 1.0])
    np.testing.assert_allclose(limits.low, [-0.1, -0.1, -0.1, -0.2, -0.2, -0.2, 1.0])
    np.testing.assert_allclose(limits.max_change[:6], [0.05, 0.05, 0.05, 0.1, 0.1, 0.1])
    np.testing.assert_allclose(limits.pose_low, [180, -10, 40, -5, -5, -5])
    assert limits.force[1] == 3.0


def test_a_policy_that_does_not_know_its_actions_range_wants_to_be_told():
    data = lab_data()
    unknown = lab_policy(
        dataclasses.replace(data, actions=dataclasses.replace(data.actions, low=None, high=None))
    )
    with pytest.raises(UserError, match=r"give --max-speed and --max-turn"):
        make_limits(LimitOptions(), unknown, Link(), POSE)
    limits = make_limits(LimitOptions(max_speed=0.3, max_turn=0.5), unknown, Link(), POSE)
    assert limits.high[0] == np.float32(0.3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reach": 0.0}, "--reach must be a number above 0"),
        ({"state_age": math.nan}, "--state-age"),
        ({"max_speed": -1.0}, "--max-speed"),
        ({"stop_after": math.inf}, "--stop-after"),
        ({"workspace_low": (1.0, 1.0, 1.0)}, "both or neither"),
        ({"workspace_low": (1.0, 1.0, 1.0), "workspace_high": (2.0, 1.0, 2.0)}, "must be below"),
        ({"max_force": math.nan}, "a force limit of nan is none"),
    ],
)
def test_limits_that_cannot_be_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        LimitOptions(**values)
