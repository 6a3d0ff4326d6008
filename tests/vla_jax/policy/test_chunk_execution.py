"""Which action a tick gets from the chunks that there are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_jax.policy.chunk_execution import ChunkQueue, Execution, num_promised, plan_arguments

HOLD = np.array([0.0, 1.0], np.float32)


def chunk(tick, horizon=4):
    """Names its tick of prediction, and the tick that each action is for."""
    return np.array([[tick, tick + i] for i in range(horizon)], np.float32)


def run(execution, num_ticks=8):
    queue, actions = ChunkQueue(execution, HOLD), []
    for tick in range(num_ticks):
        if queue.needs_chunk(tick):
            queue.add(tick, chunk(tick))
        actions.append(queue.action(tick))
    return np.stack(actions)


def test_the_newest_chunk_is_executed():
    np.testing.assert_array_equal(run(Execution())[:, 0], np.arange(8))
    np.testing.assert_array_equal(run(Execution(execute=3))[:, 0], [0, 0, 0, 3, 3, 3, 6, 6])


@pytest.mark.parametrize("latency", [1, 2])
def test_a_late_chunk_gives_the_action_of_the_tick_and_the_arm_holds_before(latency):
    actions = run(Execution(execute=2, latency=latency))
    np.testing.assert_array_equal(actions[:latency], [HOLD] * latency)
    np.testing.assert_array_equal(actions[latency:, 1], np.arange(latency, 8))
    begun = actions[latency:, 0]
    np.testing.assert_array_equal(begun, (np.arange(8 - latency) // 2) * 2)


def test_ensembling_weighs_the_oldest_chunk_most():
    rate = 0.5
    actions = run(Execution(ensemble=rate))
    # At tick 5 there are the chunks of ticks 2, 3, 4 and 5.
    weights = np.exp(-rate * np.arange(4))
    assert actions[5, 0] == pytest.approx(weights @ [2, 3, 4, 5] / weights.sum())
    np.testing.assert_allclose(actions[:, 1], np.arange(8), rtol=1e-6)
    assert actions.dtype == np.float32


def test_a_chunk_that_is_used_up_is_not_used_again():
    queue = ChunkQueue(Execution(), HOLD)
    queue.add(0, chunk(0))
    np.testing.assert_array_equal(queue.action(3), [0, 3])
    np.testing.assert_array_equal(queue.action(4), HOLD)


@given(
    execute=st.integers(1, 3),
    latency=st.integers(0, 3),
    ensemble=st.sampled_from([None, 0.0, 0.5]),
)
def test_the_age_of_an_action_is_that_of_the_chunks_that_give_it(execute, latency, ensemble):
    """An action of `chunk` names the tick of its prediction: of several, their weighted mean."""
    queue = ChunkQueue(Execution(execute, latency, ensemble), HOLD)
    for tick in range(9):
        if queue.needs_chunk(tick) and tick < 6:
            queue.add(tick, chunk(tick, horizon=6))
        action, age = queue.action(tick), queue.chunk_age(tick)
        if action is HOLD:
            assert np.isnan(age)
        else:
            assert action[0] == pytest.approx(tick - age, abs=1e-5)
            assert latency <= age < 6


def test_what_cannot_be_executed_is_refused():
    with pytest.raises(ValueError, match="execute"):
        Execution(execute=0)
    with pytest.raises(ValueError, match="latency"):
        Execution(latency=-1)
    Execution(execute=6, latency=2).check_horizon(8)
    with pytest.raises(ValueError, match="need a horizon of 9"):
        Execution(execute=6, latency=3).check_horizon(8)


@given(
    execute=st.integers(1, 4),
    latency=st.integers(0, 4),
    ensemble=st.sampled_from([None, 0.0, 0.5]),
    horizon=st.integers(5, 9),
)
def test_what_is_promised_is_executed_whatever_is_predicted(execute, latency, ensemble, horizon):
    execution, horizon = Execution(execute, latency, ensemble), max(horizon, execute + latency)
    queue, rng = ChunkQueue(execution, HOLD), np.random.default_rng(0)
    executed, promised = [], {}
    for tick in range(20):
        if queue.needs_chunk(tick):
            planned = queue.planned(tick)
            assert latency <= len(planned) < horizon
            promised |= {tick + i: action for i, action in enumerate(planned[:latency])}
            queue.add(tick, rng.normal(size=(horizon, 2)).astype(np.float32))
        executed.append(queue.action(tick))
    for tick, action in promised.items():
        if tick < len(executed):
            np.testing.assert_array_equal(action, executed[tick])


def test_without_another_chunk_what_is_planned_is_executed_to_its_end():
    queue = ChunkQueue(Execution(latency=1), HOLD)
    np.testing.assert_array_equal(queue.planned(0), [HOLD])
    for tick in range(2):
        queue.add(tick, chunk(tick))
    planned = queue.planned(2)
    np.testing.assert_array_equal(planned, [[1, 2], [1, 3], [1, 4]])
    np.testing.assert_array_equal([queue.action(tick) for tick in range(2, 5)], planned)
    late = ChunkQueue(Execution(), HOLD)
    assert late.planned(3).shape == (0, 2)


def test_the_arguments_of_a_plan_are_padded_rows_and_their_lengths():
    plans = [np.ones((2, 2), np.float32), np.full((3, 2), 5, np.float32)]
    arguments = plan_arguments(plans, [1, 0], 4)
    np.testing.assert_array_equal(
        arguments["prefix"][..., 0], np.array([[1, 1, 0, 0], [5, 5, 5, 0]], np.float32)
    )
    assert arguments["prefix_length"].tolist() == [1, 0]
    assert arguments["plan_length"].tolist() == [2, 3]


def test_a_policy_is_told_of_no_more_promised_actions_than_it_takes():
    execution = Execution(latency=3)
    assert num_promised(execution, prefix_max=2, guided=False) == 2
    assert num_promised(execution, prefix_max=5, guided=False) == 3
    assert num_promised(execution, prefix_max=0, guided=True) == 3
