"""When an episode has ended, by what comes of the arm."""

import numpy as np
import pytest

from tests.vla_jax.live.streams_of_a_test import START, state
from vla_jax.contracts.specs import LAB_ACTIONS, LAB_ANGLES, LAB_STATE
from vla_jax.live.newest import NewestOfAll


class Link:
    actions, state, angles, sensor = LAB_ACTIONS, LAB_STATE, LAB_ANGLES, None


@pytest.fixture
def newest():
    newest = NewestOfAll(Link(), ())
    for k in range(10):
        newest.state(state(k))
    return newest


def test_what_the_robot_s_program_says_is_noted(newest):
    assert newest.episodes_ended == 0
    newest.episode_end(START + 1.0)
    assert (newest.episodes_ended, newest.episode_ended_at) == (1, START + 1.0)


def moved(k, change):
    later = state(k)
    return type(later)(**vars(later) | {"pose": newest_pose() + change})


def newest_pose():
    return state(9).pose


@pytest.mark.parametrize(
    ("silence", "change", "ended"),
    [
        (200, [0, 0, 12.0, 0, 0, 0], 1),
        (200, [3.0, 3.0, 3.0, 0, 0, 0], 1),
        # Its sender was restarted: the arm stands where its last commands have brought it.
        (200, [0, 0, -2.4, 0, 0, 0], 0),
        # Angles turn over.
        (200, [0, 0, 0, 359.0, 0, 0], 0),
        # A message that is wrong, or an arm that is fast: it is heard all the while.
        (20, [0, 0, 12.0, 0, 0, 0], 0),
    ],
)
def test_an_arm_that_was_brought_elsewhere_unheard_has_ended_its_episode(newest, silence, change, ended):
    newest.state(moved(9 + silence, np.array(change)))
    assert newest.episodes_ended == ended
    if ended:
        assert newest.episode_ended_at == state(9).received
        assert newest.last_state.received > newest.episode_ended_at


def test_an_end_whose_message_comes_after_the_next_state_is_one_end(newest):
    newest.state(moved(209, np.array([0, 0, 12.0, 0, 0, 0])))
    newest.episode_end(state(210).received)
    assert newest.episodes_ended == 1
    newest.episode_end(state(1000).received)
    assert newest.episodes_ended == 2
