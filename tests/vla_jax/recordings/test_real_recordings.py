"""Four recorded BridgeData episodes: 5 Hz, three views, no sensor."""

import numpy as np
import pytest

from tests.paths import BRIDGE, PARITY
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.preparation import FaultyEpisodesError, prepare


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    options = PrepareOptions(episode=EpisodeOptions(action_hz=5.0))
    return prepare([str(BRIDGE)], tmp_path_factory.mktemp("bridge") / "d", options).dataset


def test_every_recorded_pose_is_a_tick(dataset):
    assert len(dataset.episodes) == 4
    for entry in dataset.episodes:
        table = np.loadtxt(f"{entry.path}/robot_states.csv", delimiter=",", skiprows=1)
        ticks = np.arange(entry.tick_start, entry.tick_stop)
        assert len(ticks) == 9
        np.testing.assert_array_equal(dataset.ticks.pose[ticks], table[:-1, 3:])
        np.testing.assert_array_equal(dataset.ticks.time[ticks], table[:-1, 0])
        np.testing.assert_allclose(dataset.ticks.delta[ticks, :3], np.diff(table[:, 3:6], axis=0), atol=1e-4)


def test_each_tick_sees_the_three_pictures_of_its_moment(dataset):
    assert dataset.meta.views == ("View1", "View2", "View3")
    instants = dataset.ticks.instant
    assert (np.diff(instants) == 1).all()
    for tick in (0, 5, 20):
        images = dataset.records[int(instants[tick])].images
        assert [float(image.path.stem) for image in images] == pytest.approx(
            [dataset.ticks.time[tick]] * 3, abs=1e-6
        )


def test_prompts_and_held_out_tasks(dataset):
    assert {entry.instruction for entry in dataset.episodes} == {
        "put carrot on plate",
        "turn lever vertical to front",
    }
    assert {entry.split for entry in dataset.episodes} == {"train", "val"}
    assert not dataset.has_sensor(dataset.sample_ticks("all")).any()
    assert set(dataset.statistics) == {"actions"}


def test_ten_hz_is_refused_with_the_rate_to_use(tmp_path):
    with pytest.raises(FaultyEpisodesError, match=r"4 of 4 have faults.*use --action-hz 5"):
        prepare([str(BRIDGE)], tmp_path / "d", PrepareOptions())


def test_overlapping_windows_of_the_recorded_layout_are_packed(tmp_path):
    """The layout of the lab's own episodes: windows of 650 rows, ten a second, pictures far from 100 Hz."""
    packed = prepare([str(PARITY / "episodes" / "new")], tmp_path / "d", PrepareOptions()).dataset
    assert packed.episodes[0].instruction == "Perform Blue point insertion task."
    assert packed.meta.views == ("View1", "View2")
    assert len(packed.ticks) == 8
