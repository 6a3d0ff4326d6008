"""Insertions in the lab's time, faster than it passes: what is sent, and that they are judged as in `rollout`."""

from collections import defaultdict

import numpy as np
import pytest

from experiments.phantom import PhantomEnvironment, PhantomSimulator
from experiments.phantom.lab.arm import Arm, ArmRules
from experiments.phantom.lab.clock import SkewedClock
from experiments.phantom.lab.insertions import Course, insert
from experiments.phantom.lab.senders import Post
from experiments.phantom.lab.world import CameraSettings, StreamedWorld
from experiments.phantom.simulator import STEP_S
from vla_jax.live import wire
from vla_jax.live.wire import MoveBy

START = 1_790_000_000.0
SEED = 1_000_001


class Steps:
    """Steps that do not wait. at_step: called with the moment at which each begins."""

    def __init__(self, at_step=lambda moment: None) -> None:
        self._count = 0
        self._at_step = at_step

    def next(self) -> float:
        moment = START + STEP_S * self._count
        self._count += 1
        self._at_step(moment)
        return moment


class Sent:
    """Takes what is posted."""

    def __init__(self) -> None:
        self.posts: dict[str, list[Post]] = defaultdict(list)

    def post(self, post: Post) -> None:
        self.posts[post.stream].append(post)


def blind(**settings) -> PhantomEnvironment:
    return PhantomEnvironment(PhantomSimulator(has_sensor=False, has_images=False), **settings)


def seeing() -> PhantomEnvironment:
    return PhantomEnvironment(PhantomSimulator(), time_limit_s=3.0)


def run(course: Course, arm: Arm, steps: Steps, *, cameras=None, make=seeing, seeds=(SEED,)):
    sent, clock = Sent(), SkewedClock(START, offset_s=3.0)
    found = list(
        insert(
            seeds,
            make,
            course,
            arm,
            steps,
            lambda environment: StreamedWorld(environment, sent, clock, cameras or CameraSettings(), 0.02),
            lambda: True,
            lambda: False,
        )
    )
    return found, sent.posts


def test_it_is_judged_as_the_same_episode_of_rollout():
    environment = blind()
    environment.reset(SEED)
    while not environment.is_over():
        environment.step(environment.expert_action())
    (insertion,), _ = run(Course(demonstrator=True), Arm(ArmRules()), Steps(), make=blind)
    assert insertion.outcome.success
    assert insertion.outcome.measures == environment.outcome().measures
    assert insertion.ended_s - insertion.began_s == pytest.approx(insertion.outcome.measures["time_s"])


def test_no_row_state_or_picture_is_missing_or_early():
    (insertion,), posts = run(Course(pause_s=0.5, demonstrator=True), Arm(ArmRules()), Steps())
    rows = np.concatenate([wire.decode_sensor(post.make(post.due_s)[0]).times_s for post in posts["sensor"]])
    np.testing.assert_allclose(np.diff(rows), 1 / 650, atol=1e-5)
    assert rows[0] == pytest.approx(START + 3.0)
    *states, end = [wire.decode_robot(post.make(post.due_s)) for post in posts["robot"]]
    assert isinstance(end, wire.EpisodeEnd)
    times = np.array([state.origin_s for state in states])
    np.testing.assert_allclose(np.diff(times), 0.01, atol=1e-5)
    assert times[0] == pytest.approx(insertion.began_s)
    assert times[-1] == pytest.approx(insertion.ended_s)
    pictures = [wire.decode_picture(post.make(post.due_s)) for post in posts["cameras"]]
    assert {picture.view for picture in pictures} == {"View1", "View2", "View3"}
    own = np.array([picture.time_s for picture in pictures if picture.view == "View2"])
    own = own[own > insertion.began_s - 0.05]
    np.testing.assert_allclose(np.diff(own), 0.2, atol=1e-5)
    for stream in posts.values():
        assert all(post.due_s >= post.taken_s + 0.02 - 1e-6 for post in stream)
        assert (np.diff([post.due_s for post in stream]) >= -1e-6).all() or stream is posts["cameras"]


def test_commands_move_the_needle_as_the_same_actions_do_in_rollout():
    """What is said before a step is done in it: the same world, the same noise, the same path."""
    actions = np.random.default_rng(0).uniform(-0.2, 0.2, (300, 6)) * [1, 1, 1, 0, 0, 0]
    environment = blind()
    environment.reset(SEED)
    for action in actions:
        if environment.is_over():
            break
        environment.step(np.append(action, 1.0))
    arm, said = Arm(ArmRules()), iter(actions)

    def say(moment: float) -> None:
        # The pause's one step, and the still one, come before the first that executes something.
        if moment > START + 1.5 * STEP_S:
            arm.receive(MoveBy(tuple(next(said))), moment - 0.001)

    (insertion,), _ = run(Course(pause_s=0.1), arm, Steps(say), make=blind)
    assert insertion.outcome.measures == pytest.approx(environment.outcome().measures, nan_ok=True)
    assert insertion.commands == 260


def test_a_camera_that_stops_sends_no_more():
    cameras = CameraSettings(64, 48, 75, "View2", 1.0)
    (insertion,), posts = run(
        Course(demonstrator=True, pause_s=0.1), Arm(ArmRules()), Steps(), cameras=cameras
    )
    pictures = [wire.decode_picture(post.make(0.0)) for post in posts["cameras"]]
    last = {view: max(p.time_s for p in pictures if p.view == view) for view in ("View1", "View2")}
    assert last["View2"] < insertion.began_s + 1.0
    assert last["View1"] > insertion.ended_s - 0.3
