"""The control loop against a link and features that a test fills, in real time."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from tests.vla_jax.live.live_policies import FORCE, SLOTS, VIEWS, WIDTH, lab_policy
from vla_jax.contracts.specs import LAB_ACTIONS, LAB_ANGLES, LAB_STATE, SensorSpec, StateWindow
from vla_jax.errors import UserError
from vla_jax.live.clock import LocalClock
from vla_jax.live.features import Features
from vla_jax.live.handshake import check_policy, live_spec, wait_for_streams
from vla_jax.live.limit_options import LimitOptions
from vla_jax.live.limits import make_limits
from vla_jax.live.loop import LiveLoop, LoopSettings
from vla_jax.live.newest import NewestOfAll
from vla_jax.live.observing import Observer
from vla_jax.live.predicting import Predictor
from vla_jax.live.streams import Picture, SensorBatch, State
from vla_jax.models.config import AgeEncoderConfig, StateWindowConfig
from vla_jax.policy.chunk_execution import Execution

POSE = np.array([190.0, 0.0, 60.0, 0.0, 0.0, 0.0])


class Link:
    actions = dataclasses.replace(LAB_ACTIONS, horizon=1)
    state, angles, sensor = LAB_STATE, LAB_ANGLES, SensorSpec(window=None)
    failure, jumps = None, {}

    def __init__(self):
        self.moves, self.stops = [], 0

    def move(self, action):
        self.moves.append((time.monotonic(), np.array(action)))
        return True

    def start(self):
        return False

    def is_at_start(self, state):
        return True

    def stop(self):
        self.stops += 1
        return True


class FakeFeatures:
    failure, deaths = None, 0

    def __init__(self, clock):
        self._clock, self.count, self.age_s = clock, 0, 0.3

    @property
    def newest(self):
        self.count += 1
        taken = self._clock.now() - self.age_s
        return Features(
            self.count, np.ones((SLOTS, WIDTH), np.float32), np.ones(SLOTS, bool), {"View1": taken}, 0.01
        )


class Lines:
    def __init__(self):
        self.ticks, self.events = [], []

    def tick(self, fields):
        self.ticks.append(fields)

    def event(self, timestamp, event, text="", **fields):
        self.events.append((event, text))


@dataclasses.dataclass
class World:
    policy: object
    clock: LocalClock
    link: Link
    newest: NewestOfAll
    features: FakeFeatures
    log: Lines

    def feed(self, closing, *, changes=lambda seconds: {}):
        """Fills the buffers until `closing` is set; `changes` may take streams away or alter the force, so many seconds
        after the arm was moved first, however long a busy machine takes until then."""
        begun, number = None, 0
        rows = np.zeros((7, 1026), np.float32)
        while not closing.wait(0.01):
            if begun is None and any(np.any(action[:6]) for _, action in self.link.moves):
                begun = time.monotonic()
            changed = changes(0.0 if begun is None else time.monotonic() - begun)
            now = self.clock.now()
            if not changed.get("no_state"):
                self.newest.state(State(now, now, now, now, 0.0, np.zeros(6), changed.get("pose", POSE)))
            if changed.get("end") and number == 0:
                number = 1
                self.newest.episode_end(now)
            rows = rows.copy()
            rows[:, 0] = changed.get("force", FORCE)
            times = now - np.arange(6, -1, -1) / 650
            self.newest.sensor(SensorBatch(times, now, times, rows))
            for view in VIEWS:
                self.newest.picture(Picture(view, now, now, b""))

    def run(self, settings, *, beside_ticks=False, changes=lambda seconds: {}, **options):
        closing = threading.Event()
        feeder = threading.Thread(target=self.feed, args=(closing,), kwargs={"changes": changes})
        # It compiles; what happens when is counted from the loop's beginning.
        predictor = Predictor(self.policy, seed=0, beside_ticks=beside_ticks)
        feeder.start()
        limits = LimitOptions(stop_after=options.pop("stop_after", 10.0))
        try:
            loop = LiveLoop(
                self.policy,
                self.link,
                self.newest,
                self.features,
                predictor,
                lambda pose: make_limits(limits, self.policy, self.link, pose),
                self.clock,
                settings,
                log=self.log,
                **options,
            )
            return loop.run()
        finally:
            closing.set()
            feeder.join()
            predictor.close()


@pytest.fixture(scope="module")
def policy():
    return lab_policy()


@pytest.fixture
def world(policy):
    clock, link = LocalClock(), Link()
    return World(policy, clock, link, NewestOfAll(link, VIEWS), FakeFeatures(clock), Lines())


def test_each_tick_sends_what_the_policy_says_of_the_newest_and_the_end_stops_the_arm(world):
    told = []
    ending = world.run(LoopSettings(seconds=2.5), tell_sent=lambda action, at: told.append(action))
    assert (ending.why, ending.is_fault) == ("done", False)
    assert 2 <= len(world.link.moves) <= 26
    assert world.link.stops == 1
    assert len(told) == len(world.link.moves)
    running = [tick for tick in world.log.ticks if tick["mode"] == "run"]
    assert 1 <= len(running) < len(world.link.moves)
    features = world.features.newest
    observation = {
        "vl": features.vl[None],
        "vl_mask": features.vl_mask[None],
        "sensor": np.zeros((1, 65, 1026), np.float32),
        "has_sensor": np.array([True]),
    }
    observation["sensor"][:, :, 0] = FORCE
    expected = world.policy.predict(**observation)[0, 0]
    for tick in running:
        np.testing.assert_allclose(tick["raw_action"], expected, atol=1e-6)
        np.testing.assert_allclose(tick["action"], expected, atol=1e-6)
        assert tick["age_ms"]["state"] >= 0
        assert tick["age_ms"]["features"] > 299
        assert tick["sensor_to_command_ms"] > tick["age_ms"]["sensor"]
    events = [event for event, _ in world.log.events]
    assert events[:4] == ["start", "episode_begin", "intervention", "resumed"]
    assert events[-1] == "stop"
    assert ("intervention", "no features") in world.log.events


def test_a_residual_corrects_what_is_sent_by_the_tick_s_own_window(world):
    asked = []

    class Residual:
        def correct(self, actions, chunk_ages, sensor, has_sensor):
            asked.append((actions.copy(), chunk_ages[0], sensor[0, -1, 0], has_sensor[0]))
            return actions + np.float32(0.001)

    def enough():
        return "enough" if len(asked) >= 6 else None

    settings = LoopSettings(Execution(execute=4), seconds=60.0)
    world.run(settings, residual=Residual(), asked_to_stop=enough)
    running = [tick for tick in world.log.ticks if tick["mode"] == "run"]
    for tick, (actions, age, force, has_sensor) in zip(running, asked, strict=False):
        np.testing.assert_array_equal(tick["raw_action"], actions[0] + np.float32(0.001))
        assert age in range(4)
        assert (force, has_sensor) == (np.float32(FORCE), True)
    assert running
    # The same number of times as there was an action: not while the arm was held before the first features came.
    acted = [tick for tick in world.log.ticks if tick["raw_action"] is not None]
    assert len(acted) == len(asked) < len(world.link.moves)


def test_a_policy_that_is_told_how_old_its_features_are_is_told_of_the_oldest_picture():
    clock, link = LocalClock(), Link()
    newest = NewestOfAll(link, VIEWS)
    observer = Observer(lab_policy(age=AgeEncoderConfig(4)), newest)
    moment = clock.now()
    taken = {"View1": moment - 0.75, "View2": moment - 0.5}
    features = Features(1, np.ones((SLOTS, WIDTH), np.float32), np.ones(SLOTS, bool), taken, 0.01)
    seen = observer.look(moment, features, np.zeros(7))
    np.testing.assert_allclose(observer.parts["feature_age"], [0.75], atol=1e-6)
    assert observer.parts["feature_age"][0] == np.float32(seen.age("features"))
    assert "feature_age" not in Observer(lab_policy(), newest).parts


def test_a_policy_that_reads_the_last_poses_sees_those_of_its_episode():
    clock, link = LocalClock(), Link()
    newest = NewestOfAll(link, VIEWS)
    reads = StateWindowConfig(tuple(range(6)), StateWindow(4), hidden_dim=4)
    observer = Observer(lab_policy(state_window=reads), newest)
    moment = clock.now()
    for back in range(50, -1, -1):
        at, pose = moment - back / 100, POSE + back
        newest.state(State(at, at, at, at, 0.0, np.zeros(6), pose))
    seen = observer.look(moment, None, np.zeros(7), moment - 0.25)
    np.testing.assert_array_equal(observer.parts["state_window_mask"], [[False, True, True, True]])
    np.testing.assert_allclose(observer.parts["state_window"][0, :, 0] - POSE[0], [0, 20, 10, 0], atol=1.01)
    np.testing.assert_array_equal(observer.parts["state_window"][0, -1], seen.pose)


def test_a_dry_run_sends_nothing_at_all(world):
    ending = world.run(LoopSettings(seconds=0.6, dry_run=True))
    assert ending.why == "done"
    assert world.link.moves == []
    assert world.link.stops == 0
    assert any(tick["action"] is not None and not tick["sent"] for tick in world.log.ticks)


def test_late_chunks_are_executed_from_the_action_that_their_latency_leaves(world):
    """Predicted beside the ticks: what is sent at a tick is the chunk's action number `latency`, never an earlier."""

    def running():
        return [tick for tick in world.log.ticks if tick["mode"] == "run" and tick["raw_action"] is not None]

    def enough():
        return "enough" if len(running()) >= 12 else None

    settings = LoopSettings(Execution(execute=2, latency=2), seconds=60.0)
    world.run(settings, beside_ticks=True, asked_to_stop=enough)
    assert running()
    features = world.features.newest
    sensor = np.zeros((1, 65, 1026), np.float32)
    sensor[:, :, 0] = FORCE
    chunk = world.policy.predict(features.vl[None], features.vl_mask[None], sensor, np.array([True]))[0]
    for tick in running():
        distance = np.abs(chunk - tick["raw_action"]).max(axis=1)
        assert distance[2:4].min() < 1e-5
        assert distance[:2].min() > 1e-5 or np.abs(chunk[0] - chunk[2]).max() < 1e-5


def test_a_force_beyond_its_limit_holds_the_arm_and_then_stops_it_for_good(world):
    ending = world.run(
        LoopSettings(seconds=30),
        changes=lambda seconds: {"force": FORCE + 5.0} if seconds > 0.5 else {},
        stop_after=0.4,
    )
    assert ending.is_fault
    assert ending.why == "held for 0.4 s: force"
    assert world.link.stops >= 1
    moved = [bool(np.any(action[:6])) for _, action in world.link.moves]
    assert any(moved)
    assert not moved[-1]
    assert ("intervention", "force") in world.log.events


def test_a_stream_that_stops_is_seen_between_ticks_and_its_return_goes_on(world):
    gone_at = []

    def changes(seconds):
        is_gone = any(begin < seconds < begin + 0.6 for begin in (0.2, 1.2, 2.2))
        if is_gone and not gone_at:
            gone_at.append(time.monotonic())
        return {"no_state": is_gone}

    world.run(LoopSettings(seconds=5.0), changes=changes)
    after = [bool(np.any(action[:6])) for at, action in world.link.moves if at > gone_at[0]]
    assert False in after
    assert True in after[after.index(False) :]
    # A hold that a look between ticks finds is a command beside those of the ticks; of three, a busy machine may
    # leave some to the ticks.
    assert len(world.link.moves) > sum(tick["sent"] for tick in world.log.ticks)
    assert ("intervention", "state too old") in world.log.events
    assert world.log.events[-1][0] == "stop"


def test_an_episode_ends_and_the_next_state_begins_another(world):
    ending = world.run(LoopSettings(episodes=2, seconds=4.0), changes=lambda seconds: {"end": seconds > 0.2})
    assert ending.why == "done"
    assert max(tick["episode"] for tick in world.log.ticks) == 2
    assert [event for event, _ in world.log.events].count("episode_end") == 1


def test_an_end_that_is_not_heard_is_seen_by_where_the_arm_is_next(world):
    elsewhere = POSE + np.array([0, 0, 12.0, 0, 0, 0])

    def changes(seconds):
        if 0.2 < seconds < 0.9:
            return {"no_state": True}
        return {"pose": elsewhere} if seconds >= 0.9 else {}

    ending = world.run(LoopSettings(episodes=2, seconds=6.0), changes=changes)
    assert ending.why == "done"
    assert max(tick["episode"] for tick in world.log.ticks) == 2
    assert [event for event, _ in world.log.events].count("episode_end") == 1
    second = [tick for tick in world.log.ticks if tick["episode"] == 2]
    assert any(tick["mode"] == "run" for tick in second)


def test_who_asks_for_a_stop_gets_it_between_ticks(world):
    asked = []

    def asked_to_stop():
        if len(world.link.moves) < 3:
            return None
        asked.append(time.monotonic())
        return "the stop key"

    ending = world.run(LoopSettings(), asked_to_stop=asked_to_stop)
    assert (ending.why, ending.is_fault) == ("the stop key", False)
    assert world.link.stops == 1


def test_features_of_pictures_from_before_the_episode_are_not_acted_on(world):
    world.features.age_s = 0.5
    world.run(LoopSettings(seconds=3.0))
    ticks = [tick for tick in world.log.ticks if tick["episode"] == 1]
    assert "no features" in ticks[0]["reasons"]
    assert any(tick["mode"] == "run" for tick in ticks)
    for tick in ticks:
        if tick["mode"] == "run":
            assert tick["timestamp"] - ticks[0]["timestamp"] > 0.35


def fed(world, seconds=0.2):
    closing = threading.Event()
    feeder = threading.Thread(target=world.feed, args=(closing,))
    feeder.start()
    time.sleep(seconds)
    closing.set()
    feeder.join()


def test_streams_that_are_not_there_are_named(world):
    with pytest.raises(
        UserError, match=r"nothing came from View1, View2, View3, the robot's state, the sensor"
    ):
        wait_for_streams(world.policy, world.newest, 0.1, lambda: None)
    fed(world)
    wait_for_streams(world.policy, world.newest, 0.1, lambda: None)
    check_policy(world.policy, world.link, world.newest)


def test_a_policy_of_other_streams_is_refused_with_every_difference(world):
    class OtherArm(Link):
        actions = dataclasses.replace(Link.actions, names=("j1",) * 7, rate_hz=20.0)
        sensor = SensorSpec(512, None, 100.0)

    fed(world)
    other = dataclasses.replace(world, link=OtherArm())
    with pytest.raises(UserError) as refused:
        check_policy(other.policy, other.link, other.newest)
    for part in ("action names", "action rate_hz is 20", "sensor channels is 512"):
        assert part in str(refused.value)


def test_a_measured_rate_near_the_trained_one_is_that_one(world):
    fed(world)
    spec = live_spec(world.policy, world.link, world.newest)
    assert spec.sensor is not None
    assert spec.sensor.hz == 650.0
