"""Which action a tick gets from the chunks that there are."""

import numpy as np
import pytest

from vla_jax.policy.chunk_execution import ChunkQueue, Execution

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


def test_what_cannot_be_executed_is_refused():
    with pytest.raises(ValueError, match="execute"):
        Execution(execute=0)
    with pytest.raises(ValueError, match="latency"):
        Execution(latency=-1)
    Execution(execute=6, latency=2).check_horizon(8)
    with pytest.raises(ValueError, match="need a horizon of 9"):
        Execution(execute=6, latency=3).check_horizon(8)
