"""A world, its pictures and a policy that vla_jax has never heard of go through the closed loop."""

import os
import signal
from collections import defaultdict
from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.vla_jax.policy.policies import CHANNELS, ROWS, SLOTS, WIDTH, tiny_policy
from tests.vla_jax.policy.residuals import residual_of
from vla_jax.contracts.environment import Outcome, Reading
from vla_jax.contracts.specs import LAB_ACTIONS, ActionSpec, FeatureSpec, StateWindow
from vla_jax.errors import UserError
from vla_jax.evaluation.closed_loop import Inputs, RolloutSettings, roll_out
from vla_jax.evaluation.environments import LocalEnvironments, environment_processes
from vla_jax.policy.chunk_execution import Execution

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

    def encode_batch(self, observations):
        assert {prompt for prompt, _ in observations} == {"go"}
        self.num_calls += 1
        seen = [(images["eye"].mean() - 100) / 50 if images else np.nan for _, images in observations]
        return np.array(seen, np.float32)[:, None, None], np.ones((len(seen), 1), bool)


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


def run(predict, environments=1, seeds=(0,), encoder=None, inputs=None, execution=None, **settings):
    worlds = environments if isinstance(environments, list) else [Integrator() for _ in range(environments)]
    settings = RolloutSettings(execution or Execution(), **{"max_ticks": 40} | settings)
    encoder, worlds = encoder or BrightnessEncoder(), LocalEnvironments(worlds)
    return list(roll_out(predict, encoder, worlds, seeds, settings, jax.random.key(3), inputs or Inputs()))


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
    (rollout,) = run(by_sensor, execution=Execution(execute=2), max_ticks=7)
    np.testing.assert_array_equal(rollout.decision_tick, [0, 2, 4, 6])
    expected = [chunk[i] for chunk in rollout.chunks for i in range(2)][:7]
    np.testing.assert_array_equal(rollout.actions, expected)
    (whole,) = run(by_sensor, execution=Execution(execute=3), max_ticks=7)
    np.testing.assert_array_equal(whole.decision_tick, [0, 3, 6])
    with pytest.raises(ValueError, match="need a horizon of 4"):
        run(by_sensor, execution=Execution(execute=3, latency=1))


def test_late_actions_are_those_of_the_tick_at_which_they_are_executed():
    (rollout,) = run(by_sensor, execution=Execution(execute=1, latency=2), max_ticks=7)
    # Until the first chunk is there the cart stands.
    np.testing.assert_array_equal(rollout.actions[:2], 0.0)
    np.testing.assert_array_equal(rollout.actions[2:], rollout.chunks[:5, 2])


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


def test_late_features_are_those_of_older_pictures():
    seen = []

    def noting(vl, *others, **named):
        seen.append(vl[0, 0, 0])
        return np.full((1, HORIZON, 1), 0.02)

    (rollout,) = run(noting, refresh_ticks=2, feature_latency=3, max_ticks=9)
    # The arm waits for the first; those of tick 2 are there at tick 5, those of tick 4 at tick 7.
    np.testing.assert_allclose(rollout.image_time_s, [0, 0, 0, 0, 0, 0.2, 0.2, 0.4, 0.4])
    np.testing.assert_allclose(seen, rollout.pose[[0, 0, 0, 0, 0, 2, 2, 4, 4], 0], atol=0.011)


def test_what_is_lost_for_a_while_is_missing_then():
    given = []

    def noting(vl, vl_mask, sensor, has_sensor, key):
        given.append((has_sensor[0], np.isnan(vl[0, 0, 0])))
        return np.zeros((1, HORIZON, 1))

    run(noting, refresh_ticks=1, max_ticks=6, sensor_lost=(0.1, 0.3), views_lost=(0.4, 9.0))
    assert [has_sensor for has_sensor, _ in given] == [True, False, False, True, True, True]
    assert [unseen for _, unseen in given] == [False, False, False, False, True, True]


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

    run(noting, inputs=Inputs(sensor_rows=2), max_ticks=1)
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
    (rollout,) = run(noisy, max_ticks=6)
    straight = by_sensor(None, None, rollout.pose[:-1, None].astype(np.float32), None, None)
    noise = (rollout.chunks - straight).ravel()
    assert len(np.unique(noise.round(9))) == noise.size


def test_an_anchored_policy_is_given_the_previous_action():
    given = []

    def noting(vl, vl_mask, sensor, has_sensor, key, z_chunk):
        given.append(z_chunk)
        return z_chunk + 0.01

    (rollout,) = run(noting, inputs=Inputs(anchored=True), max_ticks=3)
    assert given[0].shape == (1, HORIZON, 1)
    np.testing.assert_allclose(
        [chunk[0, :, 0] for chunk in given], np.array([[0.0], [0.01], [0.02]]) * np.ones(3)
    )
    np.testing.assert_allclose(rollout.actions[:, 0], [0.01, 0.02, 0.03])


def test_a_policy_that_reads_the_state_is_given_the_pose_of_the_tick():
    given = []

    def noting(vl, vl_mask, sensor, has_sensor, key, state):
        given.append(state)
        return np.full((1, HORIZON, 1), 0.02)

    (rollout,) = run(noting, inputs=Inputs(state=True), max_ticks=4)
    np.testing.assert_array_equal(np.concatenate(given), rollout.pose[:-1])


def test_a_policy_that_reads_the_last_poses_is_given_those_of_its_episode():
    given = []

    def noting(vl, vl_mask, sensor, has_sensor, key, state_window, state_window_mask):
        given.append((state_window[0, :, 0], state_window_mask[0]))
        return np.full((1, HORIZON, 1), 0.02)

    window = StateWindow(3, 2)
    (rollout,) = run(noting, inputs=Inputs(state_window=window), max_ticks=6)
    places = rollout.pose[:, 0]
    for tick, (poses, there) in enumerate(given):
        past = [tick - 4, tick - 2, tick]
        assert there.tolist() == [at >= 0 for at in past]
        np.testing.assert_array_equal(poses, [places[at] if at >= 0 else places[tick] for at in past])


def test_a_policy_that_is_told_how_old_its_features_are_is_told_of_their_pictures():
    given = []

    def noting(vl, vl_mask, sensor, has_sensor, key, feature_age):
        given.append(feature_age)
        return np.full((1, HORIZON, 1), 0.02)

    settings = {"refresh_ticks": 2, "feature_latency": 3, "max_ticks": 9}
    (rollout,) = run(noting, inputs=Inputs(feature_age=True), **settings)
    ages = np.concatenate(given)
    assert ages.dtype == np.float32
    np.testing.assert_allclose(ages, rollout.time_s[:-1] - rollout.image_time_s, atol=1e-6)
    np.testing.assert_allclose(ages, [0, 0.1, 0.2, 0.3, 0.4, 0.3, 0.4, 0.3, 0.4], atol=1e-6)


def test_a_policy_that_goes_on_from_promised_actions_is_given_those_that_are_then_executed():
    given = []

    def noting(vl, vl_mask, sensor, has_sensor, key, prefix, prefix_length, plan_length):
        given.append((prefix[0], prefix_length[0], plan_length[0]))
        chunk = by_sensor(vl, vl_mask, sensor, has_sensor, key) + 0.01 * len(given)
        return np.where(np.arange(HORIZON)[None, :, None] < prefix_length[:, None, None], prefix, chunk)

    execution = Execution(latency=2)
    (rollout,) = run(noting, inputs=Inputs(prefix=2), execution=execution, max_ticks=6)
    for tick, (prefix, length, planned) in enumerate(given):
        assert (length, planned) == (2, 2)
        executed = rollout.actions[tick : tick + 2]
        np.testing.assert_array_equal(prefix[: len(executed)], executed.astype(np.float32))
    assert len(np.unique(rollout.actions)) > 2
    # No more than it takes; and a guided one is given all that is planned.
    given.clear()
    run(noting, inputs=Inputs(prefix=1), execution=execution, max_ticks=3)
    assert {length for _, length, _ in given} == {1}
    given.clear()
    run(noting, inputs=Inputs(guided=True), execution=Execution(execute=1), max_ticks=3)
    assert [(length, planned) for _, length, planned in given] == [(0, 0), (0, 2), (0, 2)]


def test_noise_is_an_episode_s_where_that_is_asked_for():
    (rollout,) = run(noisy, max_ticks=6, noise="episode")
    (other,) = run(noisy, seeds=[1], max_ticks=6, noise="episode")
    noise = [
        r.chunks - by_sensor(None, None, r.pose[:-1, None].astype(np.float32), None, None)
        for r in (rollout, other)
    ]
    np.testing.assert_allclose(noise[0], np.broadcast_to(noise[0][:1], noise[0].shape), atol=1e-6)
    assert np.abs(noise[0] - noise[1]).max() > 1e-3


def test_environments_in_processes_give_the_same_episodes():
    settings, seeds = RolloutSettings(max_ticks=40), [5, 3, 8, 1, 2]

    def episodes(environments):
        found = roll_out(noisy, BrightnessEncoder(), environments, seeds, settings, jax.random.key(3))
        return {rollout.seed: rollout for rollout in found}

    here = episodes(LocalEnvironments([Integrator() for _ in range(3)]))
    with environment_processes(Integrator, 3, 2) as environments:
        there = episodes(environments)
    assert list(here) == list(there)
    for seed in seeds:
        np.testing.assert_array_equal(here[seed].actions, there[seed].actions)
        assert here[seed].outcome == there[seed].outcome


class Broken(Integrator):
    def step(self, action):
        raise ArithmeticError("the cart is off its rails")


class Killed(Integrator):
    def step(self, action):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_fails_says_why_and_one_that_is_killed_what_to_do():
    with environment_processes(Broken, 2, 2) as environments:
        environments.reset({0: 1, 1: 2})
        with pytest.raises(RuntimeError, match="the cart is off its rails"):
            environments.step({0: np.zeros(1)})
    with environment_processes(Killed, 2, 2) as environments:
        environments.reset({0: 1, 1: 2})
        with pytest.raises(UserError, match="was killed"):
            environments.step({0: np.zeros(1)})


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
        by_sensor,
        BrightnessEncoder(),
        LocalEnvironments([Counted()]),
        range(3),
        RolloutSettings(refresh_ticks=1),
        jax.random.key(0),
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

    def encode_batch(self, observations):
        vl = np.linspace(0, 1, SLOTS * WIDTH, dtype=np.float32).reshape(SLOTS, WIDTH)
        return np.stack([vl] * len(observations)), np.stack([np.arange(SLOTS) > 0] * len(observations))


def test_a_real_policy_acts_with_its_own_noise():
    policy = tiny_policy("diffusion")
    key = jax.random.key(3)
    settings, inputs, worlds = (
        RolloutSettings(max_ticks=3),
        Inputs.of(policy),
        LocalEnvironments([Arm(), Arm()]),
    )
    assert inputs == Inputs(sensor_rows=ROWS)
    rollouts = roll_out(policy.predict, ConstantEncoder(), worlds, [4, 9], settings, key, inputs)
    for rollout in rollouts:
        world = Arm()
        readings = [world.reset(rollout.seed), world.step(None), world.step(None)]
        vl, vl_mask = ConstantEncoder().encode_batch([("go", {})])
        for tick, reading in enumerate(readings):
            row_key = jax.random.fold_in(jax.random.fold_in(key, rollout.seed), tick)
            expected = policy.predict(
                vl, vl_mask, reading.sensor[None, -ROWS:], np.ones(1, bool), row_key[None]
            )
            np.testing.assert_allclose(rollout.chunks[tick], expected[0], rtol=1e-4, atol=1e-5)


def acted(policy, correct, **settings):
    """The episodes of a real policy in a world that it does not move, by seed."""
    settings, worlds = RolloutSettings(max_ticks=5, **settings), LocalEnvironments([Arm(), Arm()])
    arguments = (policy.predict, ConstantEncoder(), worlds, [4, 9, 5], settings, jax.random.key(3))
    rollouts = roll_out(*arguments, Inputs.of(policy), correct)
    return {rollout.seed: rollout for rollout in rollouts}


@pytest.mark.parametrize("execution", [Execution(), Execution(2, 1), Execution(1, 1, 0.3)], ids=str)
def test_a_residual_that_is_zero_changes_no_bit_of_an_episode(execution):
    policy = tiny_policy("flow")
    without = acted(policy, None, execution=execution)
    zero = acted(policy, residual_of(policy, is_random=False).correct, execution=execution)
    for seed, rollout in without.items():
        assert zero[seed].actions.tobytes() == rollout.actions.tobytes()
        assert zero[seed].actions.dtype == rollout.actions.dtype
        assert zero[seed].chunks.tobytes() == rollout.chunks.tobytes()


def test_a_residual_corrects_every_tick_by_its_own_window_and_nothing_while_the_arm_holds():
    policy = tiny_policy()
    residual = residual_of(policy)
    settings = {"execution": Execution(2, 1), "sensor_lost": (0.35, 0.45)}
    without, rollouts = acted(policy, None, **settings), acted(policy, residual.correct, **settings)
    for seed, rollout in rollouts.items():
        world = Arm()
        windows = [world.reset(seed).sensor, *(world.step(None).sensor for _ in range(4))]
        planned = without[seed].actions
        # Held until the first chunk is there; a chunk of ticks 0, 2, …, is executed from its second action on.
        ages = [np.nan, 1, 2, 1, 2]
        for tick, (window, age) in enumerate(zip(windows, ages, strict=True)):
            expected = residual.correct(
                planned[tick, None], np.array([age]), window[None, -ROWS:], np.array([tick != 3])
            )
            np.testing.assert_allclose(rollout.actions[tick], expected[0], rtol=1e-5, atol=1e-6)
        changed = np.abs(rollout.actions - planned).max(axis=1) > 0
        assert changed.tolist() == [False, True, True, False, True]
        np.testing.assert_array_equal(rollout.chunks, without[seed].chunks)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("refresh_ticks", 0),
        ("max_ticks", 0),
        ("feature_latency", -1),
        ("noise", "tick"),
        ("sensor_lost", (2, 1)),
        ("views_lost", (-1, 1)),
    ],
)
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        replace(RolloutSettings(), **{name: value})
