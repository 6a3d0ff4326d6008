"""Sources as the user names them: patterns, weights, prompts, views and the sensor left out."""

import os
import shutil

import numpy as np
import pytest

from tests.vla_jax.recordings.recorded_episodes import write_data_set, write_windows_episode
from tests.vla_jax.recordings.test_capture import write_capture_episode
from tests.vla_jax.recordings.test_legacy import write_legacy_episode
from vla_jax.contracts.provenance import Provenance
from vla_jax.dataset.feature_table import record_keys
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.preparation import prepare
from vla_jax.errors import UserError
from vla_jax.recordings.discovery import choose_by_label, find_episodes


@pytest.fixture
def source(tmp_path):
    return write_data_set(tmp_path / "lab", 4, seconds=1.0)


def test_the_narrowest_label_decides(source):
    episodes = find_episodes([str(source)])
    assert episodes[0].labels == ("windows", str(source), "lab", "Task_0", "episode_000")
    assert choose_by_label(episodes, {"lab": 1, "Task_1": 2, "episode_003": 3}, "weight") == [1, 1, 2, 3]
    assert choose_by_label(episodes, {f"{source}/": 5}, "weight") == [5] * 4
    assert choose_by_label(episodes, {"windows": 3, "Task_1": 2}, "weight") == [3, 3, 2, 2]
    alone = find_episodes([str(source / "Task_1" / "episode_003")])
    assert choose_by_label(alone, {"Task_1": 7}, "weight") == [7]
    matched = find_episodes([str(source / "Task_*")])
    assert choose_by_label(matched, {"Task_0": 8}, "weight") == [8, 8, None, None]


def test_an_unknown_label_names_what_there_is(source):
    episodes = find_episodes([str(source)])
    with pytest.raises(UserError, match=r"--weight Tsk_1=…: .* did you mean Task_1\?"):
        choose_by_label(episodes, {"Tsk_1": 1}, "weight")
    with pytest.raises(UserError, match=r"--prompt other=…: .* there are .*Task_0, Task_1, lab, windows"):
        choose_by_label(episodes, {"other": 1}, "prompt")


def test_weights_and_prompts_are_stored_and_no_episode_is_read_again(source, tmp_path):
    out = tmp_path / "d"
    before = prepare([str(source)], out, PrepareOptions()).dataset
    provenance = Provenance("b", "tiny", None, {"size": {}}, "t", pooling="mean", grid=2)
    keys = record_keys(before, range(len(before.records)), provenance)
    inode = os.stat(before.content / "sensor.npy").st_ino
    options = PrepareOptions(weights={"Task_1": 3.0}, prompts={"Task_1": "insert the needle"})
    result = prepare([str(source)], out, options)
    after = result.dataset
    assert result.num_read == 0
    assert [(e.weight, e.instruction) for e in after.episodes] == [
        *[(1.0, "insert")] * 2,
        *[(3.0, "insert the needle")] * 2,
    ]
    assert [e.split for e in after.episodes] == [e.split for e in before.episodes]
    # The stream has not changed, and is neither read nor written.
    assert os.stat(after.content / "sensor.npy").st_ino == inode
    # Another prompt is another record, of the same pictures.
    changed = np.array(keys) != record_keys(after, range(len(after.records)), provenance)
    np.testing.assert_array_equal(changed, after.array("instant_episode") >= 2)
    again = prepare([str(source)], out, PrepareOptions())
    assert again.num_read == 0
    assert again.dataset.index == before.index


def test_a_prompt_for_all_yields_to_one_for_a_folder(source, tmp_path):
    options = PrepareOptions(instruction="all", prompts={"Task_0": "one"})
    packed = prepare([str(source)], tmp_path / "d", options).dataset
    assert [e.instruction for e in packed.episodes] == ["one", "one", "all", "all"]


def test_a_shorter_stream_is_not_mistaken_for_the_old_one(source, tmp_path):
    out = tmp_path / "d"
    prepare([str(source)], out, PrepareOptions())
    for gone in ("Task_0/episode_000", "Task_1/episode_003"):
        shutil.rmtree(source / gone)
        result = prepare([str(source)], out, PrepareOptions())
        assert result.num_read == 0
        fresh = prepare([str(source)], tmp_path / gone.replace("/", "_"), PrepareOptions()).dataset
        np.testing.assert_array_equal(result.dataset.sensor, fresh.sensor)


def test_impossible_weights_and_prompts_are_refused():
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="--weight a="):
            PrepareOptions(weights={"a": weight})
    with pytest.raises(UserError, match="a prompt is empty"):
        PrepareOptions(prompts={"a": " "})
    with pytest.raises(UserError, match="a prompt is empty"):
        PrepareOptions(instruction="")


@pytest.mark.parametrize("kind", ["windows", "capture", "legacy"])
def test_the_sensor_can_be_left_out_even_when_it_is_damaged(kind, tmp_path):
    folder = tmp_path / "s" / "t" / "e"
    if kind == "windows":
        write_windows_episode(folder)
        (folder / "sensor_data.npz").write_bytes(b"no archive")
    elif kind == "capture":
        write_capture_episode(folder)
        (folder / "sensor_data_20250101.npz").write_bytes(b"no archive")
    else:
        write_legacy_episode(folder)
    options = PrepareOptions(episode=EpisodeOptions(sensor=False))
    packed = prepare([str(folder)], tmp_path / "d", options).dataset
    assert not packed.episodes[0].has_sensor
    assert packed.sensor.shape == (0, 1026)
    assert np.isnan(packed.ticks.sensor_time).all()
    assert len(packed.sample_ticks("all"))


def test_times_of_pictures_and_sensor_rows_are_kept(tmp_path):
    write_windows_episode(tmp_path / "s" / "t" / "e", views=("View1", "View2"))
    write_windows_episode(tmp_path / "s" / "t" / "f", seed=1, views=("View2",), has_sensor=False)
    packed = prepare([str(tmp_path / "s")], tmp_path / "d", PrepareOptions()).dataset
    for index, entry in enumerate(packed.episodes):
        assert entry.pose_hz == pytest.approx(100, abs=0.1)
        for view, times in packed.image_times(index).items():
            names = sorted(path.stem for path in (packed.folder(index) / "images" / view).iterdir())
            np.testing.assert_allclose(times, np.array(names, float))
    assert [sorted(packed.image_times(i)) for i in (0, 1)] == [["View1", "View2"], ["View2"]]
    assert [entry.sensor_hz for entry in packed.episodes] == [650, None]
    ticks = np.arange(packed.episodes[0].tick_start + 1, packed.episodes[0].tick_stop)
    rows = packed.sensor_windows(ticks, 1)[:, 0, 0].astype(float) * 64
    start = packed.ticks.time[packed.episodes[0].tick_start]
    np.testing.assert_allclose(packed.ticks.sensor_time[ticks] - start, (rows + 1) / 650, atol=1e-5)
