"""A world, its pictures and a policy that vla_jax has never heard of go through the closed loop."""

from collections import defaultdict
from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.vla_jax.policy.policies import CHANNELS, ROWS, SLOTS, WIDTH, tiny_policy
from vla_jax.contracts.environment import Outcome, Reading
from vla_jax.contracts.specs import LAB_ACTIONS, ActionSpec, FeatureSpec
from vla_jax.evaluation.closed_loop import RolloutSettings, roll_out

GOAL = 1.0
HORIZON = 3


class Integrator:
    """A cart on a line that is to be brought to `GOAL`; its place shows in the picture's brightness.

    The picture is taken at even ticks only, the sensor's last row holds the place at once.
    """

    actions = ActionSpec(names=("dx",), units=("mm",), horizon=HORIZON, rate_hz=10.0)

    def __init__(self, has_sensor=True):
        self.has_sensor = has_sensor
        self.commands = []

    def reset(self, seed):
        self.rng = np.random.default_rng(seed)
        self.x, self.tick = float(self.rng.uniform(-1, 0)), 0
        return self._read()

    def step(self, action):
        self.commands.append(float(action[0]))
        self.x += float(np.clip(action[0], -0.2, 0.2))
        self.tick += 1
        return self._read()

    def is_over(self):
        return abs(self.x - GOAL) < 0.01

    def outcome(self):
        success = self.is_over()
        return Outcome(success, None if success else "far_away", {"error_mm": abs(self.x - GOAL)})

    def _read(self):
        if self.tick % 2 == 0:
            self.picture_time = self.tick / 10
            self.image = np.full((2, 2, 3), np.round(100 + 50 * self.x), np.uint8)
        sensor = np.full((4, 1), self.x, np.float32) if self.has_sensor else None
        return Reading(
            self.tick / 10, "go", {"eye": self.image}, self.picture_time, sensor, np.array([self.x])
        )


class BrightnessEncoder:
    """One slot: the place that the picture shows."""

    spec = FeatureSpec(num_slots=1, width=1)

    def __init__(self):
        self.num_calls = 0

    def encode(self, prompt, images):
        assert prompt == "go"
        self.num_calls += 1
        return np.array([[(images["eye"].mean() - 100) / 50]], np.float32), np.ones(1, bool)


def by_sensor(vl, vl_mask, sensor, has_sensor, key):
    """Goes straight to the goal by the newest sensor row, in steps of at most 0.2."""
    remaining = GOAL - sensor[:, -1, 0]
    steps = []
    for _ in range(HORIZON):
        step = np.clip(remaining, -0.2, 0.2)
        steps.append(step)
        remaining = remaining - step
    return np.stack(steps, axis=1)[..., None]


def by_sight(vl, vl_mask, sensor, has_sensor, key):
    return by_sensor(vl, vl_mask, vl, has_sensor, key)


def noisy(vl, vl_mask, sensor, has_sensor, key):
    noise = jax.vmap(lambda row_key: jax.random.normal(row_key, (HORIZON, 1)))(key)
    return by_sensor(vl, vl_mask, sensor, has_sensor, key) + 0.02 * np.asarray(noise)


def run(predict, environments=1, seeds=(0,), encoder=None, **settings):
    worlds = environments if isinstance(environments, list) else [Integrator() for _ in range(environments)]
    settings = RolloutSettings(**{"max_ticks": 40} | settings)
    return list(roll_out(predict, encoder or BrightnessEncoder(), worlds, seeds, settings, jax.random.key(3)))


def test_a_policy_reaches_the_goal_and_the_world_says_so():
    (rollout,) = run(by_sensor)
    assert rollout.seed == 0
    assert rollout.outcome.success
    assert rollout.outcome.failure is None
    assert rollout.outcome.measures["error_mm"] < 0.01
    num_ticks = len(rollout.actions)
    np.testing.assert_allclose(rollout.time_s, np.arange(num_ticks + 1) / 10)
    np.testing.assert_allclose(np.diff(rollout.pose, axis=0), rollout.actions, atol=1e-6)
    np.testing.assert_array_equal(rollout.decision_tick, np.arange(num_ticks))
    assert rollout.chunks.shape == (num_ticks, HORIZON, 1)
    np.testing.assert_array_equal(rollout.chunks[:, 0], rollout.actions)


def test_a_policy_that_does_nothing_fails_after_the_largest_number_of_ticks():
    (rollout,) = run(lambda vl, *_, **__: np.zeros((len(vl), HORIZON, 1)), max_ticks=7)
    assert len(rollout.actions) == 7
    assert rollout.outcome == Outcome(
        False, "far_away", {"error_mm": pytest.approx(GOAL - rollout.pose[0, 0])}
    )


def test_the_first_actions_of_a_chunk_are_executed_before_the_next_prediction():
    (rollout,) = run(by_sensor, execute=2, max_ticks=7)
    np.testing.assert_array_equal(rollout.decision_tick, [0, 2, 4, 6])
    expected = [chunk[i] for chunk in rollout.chunks for i in range(2)][:7]
    np.testing.assert_array_equal(rollout.actions, expected)
    (whole,) = run(by_sensor, execute=10, max_ticks=7)
    np.testing.assert_array_equal(whole.decision_tick, [0, 3, 6])


def test_features_stay_until_they_are_refreshed_from_the_newest_pictures():
    seen, encoder = [], BrightnessEncoder()

    def noting(vl, *others, **named):
        seen.append(vl[0, 0, 0])
        return np.full((1, HORIZON, 1), 0.02)

    (rollout,) = run(noting, encoder=encoder, refresh_ticks=3, max_ticks=8)
    assert encoder.num_calls == 3
    # Pictures are taken at even ticks: at tick 3 the newest is that of tick 2.
    np.testing.assert_allclose(rollout.image_time_s, [0, 0, 0, 0.2, 0.2, 0.2, 0.6, 0.6])
    places = rollout.pose[[0, 0, 0, 2, 2, 2, 6, 6], 0]
    np.testing.assert_allclose(seen, places, atol=0.011)


def test_stale_features_make_a_policy_that_only_sees_overshoot():
    (seeing,) = run(by_sight, refresh_ticks=10)
    (feeling,) = run(by_sensor, refresh_ticks=10)
    assert feeling.outcome.success
    assert seeing.pose.max() > GOAL + 0.1


def test_the_newest_rows_of_the_sensor_are_given_and_its_absence_is_told():
    shapes = []

    def noting(vl, vl_mask, sensor, has_sensor, key):
        shapes.append((None if sensor is None else sensor.shape, has_sensor.tolist()))
        return np.zeros((len(vl), HORIZON, 1))

    run(noting, sensor_rows=2, max_ticks=1)
    run(noting, [Integrator(has_sensor=False)], max_ticks=1)
    run(noting, [Integrator(), Integrator(has_sensor=False)], seeds=(0, 1), max_ticks=1)
    assert shapes[:2] == [((1, 2, 1), [True]), (None, [False])]
    assert shapes[2][0] == (2, 4, 1)
    assert sorted(shapes[2][1]) == [False, True]


@pytest.mark.parametrize("num_environments", [1, 2, 5])
def test_an_episode_does_not_depend_on_what_runs_beside_it(num_environments):
    sizes = set()

    def sized(vl, *others, **named):
        sizes.add(len(vl))
        return noisy(vl, *others, **named)

    seeds = [5, 3, 8, 1]
    rollouts = {rollout.seed: rollout for rollout in run(sized, num_environments, seeds)}
    assert sorted(rollouts) == sorted(seeds)
    assert sizes == {num_environments}
    for seed in seeds:
        (alone,) = run(noisy, 1, [seed])
        np.testing.assert_array_equal(rollouts[seed].actions, alone.actions)
        assert rollouts[seed].outcome == alone.outcome
    assert not np.array_equal(rollouts[5].actions[:3], rollouts[3].actions[:3])


def test_every_decision_has_noise_of_its_own():
    (rollout,) = run(noisy, max_ticks=6, execute=1)
    straight = by_sensor(None, None, rollout.pose[:-1, None].astype(np.float32), None, None)
    noise = (rollout.chunks - straight).ravel()
    assert len(np.unique(noise.round(9))) == noise.size


def test_an_anchored_policy_is_given_the_previous_action():
    given = []

    def noting(vl, vl_mask, sensor, has_sensor, key, z_chunk):
        given.append(z_chunk)
        return z_chunk + 0.01

    (rollout,) = run(noting, anchored=True, max_ticks=3)
    assert given[0].shape == (1, HORIZON, 1)
    np.testing.assert_allclose(
        [chunk[0, :, 0] for chunk in given], np.array([[0.0], [0.01], [0.02]]) * np.ones(3)
    )
    np.testing.assert_allclose(rollout.actions[:, 0], [0.01, 0.02, 0.03])


def test_finished_episodes_are_there_before_the_others_end():
    lengths = defaultdict(int)

    class Counted(Integrator):
        def reset(self, seed):
            self.seed = seed
            return super().reset(seed)

        def step(self, action):
            lengths[self.seed] += 1
            return super().step(action)

    rollouts = roll_out(
        by_sensor, BrightnessEncoder(), [Counted()], range(3), RolloutSettings(), jax.random.key(0)
    )
    first = next(rollouts)
    assert first.outcome.success
    assert list(lengths) == [0]


class Arm:
    """Stands still with noise in its sensor; enough to be looked at by a real policy."""

    actions = LAB_ACTIONS

    def reset(self, seed):
        self.rng, self.tick = np.random.default_rng(seed), 0
        return self.step(None)

    def step(self, action):
        self.tick += 1
        sensor = self.rng.normal(size=(2 * ROWS, CHANNELS)).astype(np.float32)
        return Reading(self.tick / 10, "go", {}, 0.0, sensor, np.zeros(6))

    def is_over(self):
        return False

    def outcome(self):
        return Outcome(False, "did_not_move")


class ConstantEncoder:
    spec = FeatureSpec(SLOTS, WIDTH)

    def encode(self, prompt, images):
        return np.linspace(0, 1, SLOTS * WIDTH, dtype=np.float32).reshape(SLOTS, WIDTH), np.arange(SLOTS) > 0


def test_a_real_policy_acts_with_its_own_noise():
    policy = tiny_policy("diffusion")
    key = jax.random.key(3)
    settings = RolloutSettings(max_ticks=3, sensor_rows=ROWS)
    rollouts = roll_out(policy.predict, ConstantEncoder(), [Arm(), Arm()], [4, 9], settings, key)
    for rollout in rollouts:
        world = Arm()
        readings = [world.reset(rollout.seed), world.step(None), world.step(None)]
        vl, vl_mask = ConstantEncoder().encode("go", {})
        for tick, reading in enumerate(readings):
            row_key = jax.random.fold_in(jax.random.fold_in(key, rollout.seed), tick)
            expected = policy.predict(
                vl[None], vl_mask[None], reading.sensor[None, -ROWS:], np.ones(1, bool), row_key[None]
            )
            np.testing.assert_allclose(rollout.chunks[tick], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["execute", "refresh_ticks", "max_ticks"])
def test_impossible_settings_are_refused(name):
    with pytest.raises(ValueError, match=name):
        replace(RolloutSettings(), **{name: 0})
