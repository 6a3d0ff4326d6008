"""Chunks are asked for where they are due, with what is planned; what came of them is each tick's action."""

import numpy as np
import pytest

from vla_jax.contracts.specs import LAB_ACTIONS
from vla_jax.evaluation.closed_loop import Inputs, RolloutSettings, roll_out
from vla_jax.evaluation.environments import LocalEnvironments
from vla_jax.live.planning import ChunkPlan
from vla_jax.live.predicting import Prediction
from vla_jax.policy.chunk_execution import Execution

HORIZON = LAB_ACTIONS.horizon
PARTS = {"vl": "what is seen"}


class Data:
    actions = LAB_ACTIONS


class Policy:
    """Stands for one with this much of a prefix."""

    data = Data()

    def __init__(self, prefix_max=0, guided=False):
        self.prefix_max, self.guided = prefix_max, guided


def chunk_of(call, prefix=None, length=0):
    """Each chunk names its call; what is promised comes back."""
    chunk = (
        np.full((HORIZON, LAB_ACTIONS.size), 0.01 * call, np.float32) + 0.001 * np.arange(HORIZON)[:, None]
    )
    if prefix is not None:
        chunk[:length] = prefix[:length]
    return chunk.astype(np.float32)


class AtOnce:
    """A predictor that answers within the tick, and notes what it is asked. is_busy: as long as a test wants."""

    def __init__(self):
        self.asked, self.is_busy, self.late = [], False, []

    def ask(self, tick, parts, draw):
        self.asked.append((tick, parts, draw))
        prefix = parts.get("prefix")
        chunk = chunk_of(
            len(self.asked), *(() if prefix is None else (prefix[0], int(parts["prefix_length"][0])))
        )
        return Prediction(tick, chunk, 0.001)

    def collect(self):
        return self.late.pop() if self.late else None


def run(plan, ticks, ages=None):
    actions = []
    for _ in range(ticks):
        plan.predict(PARTS)
        actions.append(plan.action())
        if ages is not None:
            ages.append(plan.chunk_age)
        plan.advance()
    return actions


def test_what_is_planned_goes_to_those_who_take_it_and_to_nobody_else():
    for policy, execution, expected in (
        (Policy(), Execution(2, 2), None),
        (Policy(prefix_max=3), Execution(2, 2), 2),
        (Policy(prefix_max=1), Execution(2, 2), 1),
        (Policy(guided=True), Execution(2, 2), 2),
    ):
        predictor = AtOnce()
        run(ChunkPlan(policy, predictor, execution), 9)
        for _, parts, _ in predictor.asked:
            assert parts["vl"] == "what is seen"
            assert ("prefix" in parts) == (expected is not None)
            if expected is not None:
                assert parts["prefix"].shape == (1, HORIZON, LAB_ACTIONS.size)
                assert parts["prefix_length"].tolist() == [expected]


@pytest.mark.parametrize("policy", [Policy(prefix_max=4), Policy(guided=True)], ids=["trained", "guided"])
def test_a_plan_on_a_robot_and_in_a_roll_out_give_the_same_actions_and_prefixes(policy):
    execution, ticks = Execution(2, 2, 0.3), 13
    predictor, live_ages, ages = AtOnce(), [], []
    live = run(ChunkPlan(policy, predictor, execution), ticks, live_ages)
    asked = []

    class World:
        actions, image_time_s = LAB_ACTIONS, 0.0
        reset = step = lambda self, _: self.reading()
        is_over = lambda self: False  # noqa: E731
        outcome = lambda self: None  # noqa: E731

        def reading(self):
            from vla_jax.contracts.environment import Reading

            return Reading(0.0, "push", {}, image_time_s=0.0, sensor=None, pose=np.zeros(6))

    class Encoder:
        def encode_batch(self, records):
            return np.zeros((len(records), 1, 1), np.float32), np.ones((len(records), 1), bool)

    def predict(vl, vl_mask, sensor, has_sensor, key, prefix, prefix_length, plan_length):
        asked.append((prefix[0], prefix_length[0], plan_length[0]))
        return chunk_of(len(asked), prefix[0], int(prefix_length[0]))[None]

    def correct(actions, chunk_ages, sensor, has_sensor):
        ages.extend(chunk_ages)
        return actions

    import jax

    inputs = Inputs(prefix=policy.prefix_max, guided=policy.guided)
    settings = RolloutSettings(execution, max_ticks=ticks)
    worlds = LocalEnvironments([World()])
    (rollout,) = roll_out(predict, Encoder(), worlds, [0], settings, jax.random.key(0), inputs, correct)
    held = LAB_ACTIONS.before_first
    np.testing.assert_array_equal([held if each is None else each for each in live], rollout.actions)
    # So that a residual corrects both alike.
    np.testing.assert_array_equal(live_ages, ages)
    assert [parts["prefix_length"][0] for _, parts, _ in predictor.asked] == [each[1] for each in asked]
    assert [parts["plan_length"][0] for _, parts, _ in predictor.asked] == [each[2] for each in asked]
    for (_, parts, _), (prefix, _, _) in zip(predictor.asked, asked, strict=True):
        np.testing.assert_array_equal(parts["prefix"][0], prefix)


def test_noise_is_drawn_for_each_chunk_or_for_each_episode():
    for noise, draws in (("chunk", [2, 3, 4, 6, 7]), ("episode", [1, 1, 1, 2, 2])):
        predictor = AtOnce()
        plan = ChunkPlan(Policy(), predictor, Execution(), noise)
        plan.begin_episode()
        run(plan, 3)
        plan.begin_episode()
        run(plan, 2)
        assert [draw for _, _, draw in predictor.asked] == draws


def test_what_was_asked_for_before_a_hold_is_not_acted_on():
    predictor = AtOnce()
    plan = ChunkPlan(Policy(), predictor, Execution(latency=1))
    run(plan, 3)
    assert plan.num_ahead == HORIZON - 1
    plan.forget()
    assert plan.action() is None
    assert plan.num_ahead == 0
    predictor.is_busy, predictor.late = True, [Prediction(2, chunk_of(9), 0.1)]
    plan.predict(PARTS)
    assert plan.action() is None
    # The chunk that a busy predictor could not make is asked for as soon as it can.
    asked = len(predictor.asked)
    plan.advance()
    predictor.is_busy = False
    plan.predict(PARTS)
    assert len(predictor.asked) == asked + 1


def test_a_refusal_is_handed_on():
    predictor = AtOnce()
    plan = ChunkPlan(Policy(), predictor, Execution())
    predictor.ask = lambda tick, parts, draw: Prediction(tick, None, 0.001, "not finite")
    assert plan.predict(PARTS).why == "not finite"
    assert plan.action() is None
