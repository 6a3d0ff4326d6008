import numpy as np

from tests.vla_jax.evaluation.rollouts import Shaft, lower
from vla_jax.evaluation.replay import replay


def test_a_replay_is_the_episode_again():
    episode = lower(3)
    readings = list(replay(Shaft(), episode))
    assert len(readings) == len(episode.actions) + 1
    np.testing.assert_array_equal([reading.pose for reading in readings], episode.pose)
    np.testing.assert_allclose([reading.time_s for reading in readings], episode.time_s)
