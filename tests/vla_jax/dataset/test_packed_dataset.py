import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.vla_jax.recordings.recorded_episodes import (
    START,
    jpeg,
    sensor_rows,
    write_data_set,
    write_windows_episode,
)
from vla_jax.dataset import joining, preparation
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.dataset.preparation import FaultyEpisodesError, prepare
from vla_jax.dataset.split import assign_splits
from vla_jax.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = write_data_set(tmp_path_factory.mktemp("source"), 5)
    shutil.rmtree(root / "Task_1" / "episode_003")
    write_windows_episode(root / "Task_1" / "episode_003", seed=3, has_sensor=False, views=("View2",))
    return root


@pytest.fixture(scope="module")
def dataset(source, tmp_path_factory):
    return prepare([str(source)], tmp_path_factory.mktemp("out") / "data", PrepareOptions()).dataset


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_ticks_hold_the_recorded_motion(dataset, source):
    entry = dataset.episodes[0]
    rows = np.loadtxt(source / "Task_0/episode_000/robot_states.csv", delimiter=",", skiprows=1)
    ticks = np.arange(entry.tick_start, entry.tick_stop)
    assert len(ticks) == 20
    np.testing.assert_allclose(dataset.ticks.pose[ticks], rows[:-1:10, 3:])
    np.testing.assert_allclose(
        dataset.ticks.delta[ticks, :6], np.diff(rows[::10, 3:], axis=0), rtol=1e-5, atol=1e-6
    )
    assert (dataset.ticks.delta[:, 6] == 1).all()


def test_everything_a_sample_sees_is_from_before_its_tick(dataset):
    ticks = dataset.sample_ticks("all")
    images = dataset.array("instant_images")
    for tick, record in zip(ticks, dataset.record_index(ticks), strict=True):
        stamps = [float(image.path.stem) for image in dataset.records[record].images]
        assert len(stamps) == (images[record] >= 0).sum() > 0
        assert max(stamps) <= dataset.ticks.time[tick] + 1e-5
    with_sensor = ticks[dataset.has_sensor(ticks)]
    # The force channel tells the row, the row its time: row r was taken (r + 1) / 650 s into the episode.
    newest = dataset.sensor_windows(with_sensor)[:, -1, 0].astype(float) * 64
    assert ((newest + 1) / 650 <= dataset.ticks.time[with_sensor] - START + 1e-5).all()
    assert ((newest + 2) / 650 > dataset.ticks.time[with_sensor] - START - 1e-5).all()


def test_windows_repeat_the_first_row_and_are_zero_without_sensor(dataset):
    entry = dataset.episodes[0]
    tick = entry.tick_start + 3
    rows = sensor_rows(1300)[:195]
    window = dataset.sensor_windows(np.array([tick]), 300)[0]
    np.testing.assert_array_equal(window[-195:], rows)
    np.testing.assert_array_equal(window[:-195], np.broadcast_to(rows[0], (105, 1026)))
    silent = next(e for e in dataset.episodes if not e.has_sensor)
    ticks = np.array([silent.tick_start + 5, tick])
    windows = dataset.sensor_windows(ticks)
    assert not windows[0].any()
    assert windows[1].any()
    assert dataset.has_sensor(ticks).tolist() == [False, True]


def test_chunks_and_previous_actions_stay_in_their_episode(dataset):
    first, second = dataset.episodes[:2]
    ticks = np.array([second.tick_start, first.tick_stop - 2, first.tick_start + 1])
    delta = dataset.ticks.delta
    last = delta[first.tick_stop - 1]
    actions = dataset.actions(ticks)
    assert actions.shape == (3, 8, 7)
    np.testing.assert_array_equal(actions[0], delta[second.tick_start :][:8])
    np.testing.assert_array_equal(actions[1], [delta[first.tick_stop - 2], *[last] * 7])
    previous = dataset.previous_action(ticks)
    np.testing.assert_array_equal(previous[0], [0, 0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(previous[2], delta[first.tick_start])


def test_features_are_refreshed_every_third_tick(dataset):
    entry = dataset.episodes[1]
    ticks = np.arange(entry.tick_start, entry.tick_stop)
    records = dataset.record_index(ticks)
    assert (records == records[np.arange(len(ticks)) // 3 * 3]).all()
    np.testing.assert_array_equal(records[::3], dataset.ticks.instant[ticks[::3]])
    assert set(dataset.required_records()) == set(dataset.record_index(dataset.sample_ticks("all")))


def test_records_name_prompt_views_and_digest(dataset):
    silent = next(i for i, e in enumerate(dataset.episodes) if not e.has_sensor)
    tick = dataset.episodes[silent].tick_start + 4
    record = dataset.records[int(dataset.record_index(np.array([tick]))[0])]
    assert record.prompt == "insert"
    assert [image.view for image in record.images] == ["View2"]
    assert dataset.meta.views == ("View1", "View2")
    assert record.images[0].digest == hashlib.sha256(record.images[0].path.read_bytes()).hexdigest()


def test_statistics_are_of_the_training_episodes(dataset):
    train = [e for e in dataset.episodes if e.split == "train"]
    rows = np.concatenate([dataset.sensor[e.sensor_start : e.sensor_stop] for e in train]).astype(np.float64)
    deltas = np.concatenate([dataset.ticks.delta[e.tick_start : e.tick_stop] for e in train]).astype(
        np.float64
    )
    np.testing.assert_allclose(dataset.statistics["force"].mean, rows[:, 0].mean())
    np.testing.assert_allclose(dataset.statistics["ascan"].std, rows[:, 1:].std(), rtol=1e-6)
    np.testing.assert_array_equal(dataset.statistics["actions"].mean, deltas.mean(axis=0))
    np.testing.assert_array_equal(
        dataset.statistics["actions"].quantiles[0.9], np.quantile(deltas, 0.9, axis=0)
    )


def test_splits_are_by_episode(dataset):
    train, val = dataset.sample_ticks("train"), dataset.sample_ticks("val")
    assert len(train) > 0
    assert len(val) > 0
    assert not set(dataset.ticks.episode[train]) & set(dataset.ticks.episode[val])
    assert len(dataset.sample_ticks("all")) == len(train) + len(val)
    with pytest.raises(UserError, match="unknown split"):
        dataset.sample_ticks("test")


def test_segments_mask_ticks_of_their_episode(tmp_path):
    segments = [{"name": "hold", "start": START + 0.45, "end": START + 0.75}]
    write_windows_episode(tmp_path / "s/t/e1", metadata={"segments": segments})
    write_windows_episode(tmp_path / "s/t/e2", seed=1)
    packed = prepare([str(tmp_path / "s")], tmp_path / "d", PrepareOptions()).dataset
    ticks = np.arange(len(packed.ticks))
    assert np.flatnonzero(packed.segment_mask("hold", ticks)).tolist() == [5, 6, 7]
    assert not packed.segment_mask("align", ticks).any()


def test_two_runs_and_two_worker_counts_give_the_same_bytes(dataset, source, tmp_path):
    one = prepare([str(source)], tmp_path / "data", PrepareOptions(num_workers=2)).dataset
    ours, theirs = tree(one.content), tree(dataset.content)
    ours.pop("episodes.json"), theirs.pop("episodes.json")
    assert ours == theirs


def test_adding_episodes_reads_only_the_new_ones(source, tmp_path, monkeypatch):
    shutil.copytree(source, tmp_path / "source")
    out = tmp_path / "data"
    # The hash alone holds an episode out of the four and of the five; a correction would be remembered.
    options = PrepareOptions(seed=2)
    held_back = tmp_path / "held_back"
    shutil.move(tmp_path / "source/Task_0/episode_002", held_back)
    assert prepare([str(tmp_path / "source")], out, options).num_read == 4
    shutil.move(held_back, tmp_path / "source/Task_0/episode_002")
    again = prepare([str(tmp_path / "source")], out, options)
    assert again.num_read == 1
    fresh = prepare([str(tmp_path / "source")], tmp_path / "fresh" / "data", options)
    ours, theirs = tree(again.dataset.content), tree(fresh.dataset.content)
    ours.pop("episodes.json"), theirs.pop("episodes.json")
    assert ours == theirs
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert len(list(out.glob("content-*"))) == 1


def test_an_episode_held_out_once_stays_so_when_others_come_and_go(tmp_path):
    """With a seed for which hash and correction alone would move one, as they do in a new folder."""
    names = [f"Task_{i % 2}/episode_{i:03d}" for i in range(8)]

    def anew(count, seed):
        return assign_splits(names[:count], ["s"] * count, 0.2, seed)

    seed = next(n for n in range(1000) if anew(8, n)[:5] != anew(5, n))
    source, out, options = tmp_path / "source", tmp_path / "data", PrepareOptions(seed=seed)

    def splits(folder, options, *parts):
        sources = [str(source / part) for part in parts or ("",)]
        packed = prepare(sources, folder, options).dataset
        return {Path(entry.path).name: entry.split for entry in packed.episodes}

    write_data_set(source, 5, seconds=0.6)
    first = splits(out, options)
    for i in (5, 6, 7):
        write_windows_episode(source / names[i], seed=i, seconds=0.6)
    grown = splits(out, options)
    assert {name: grown[name] for name in first} == first
    new = splits(tmp_path / "new", options)
    assert {name: new[name] for name in first} != first
    before = tree(out)
    splits(out, options)
    assert tree(out) == before
    # An episode that leaves the set and comes back is not forgotten; nor where the recordings have moved.
    splits(out, options, "Task_0")
    splits(out, options, "Task_1")
    assert splits(out, options) == grown
    source = source.rename(tmp_path / "elsewhere")
    assert splits(out, options) == grown
    # Another seed starts anew.
    other = PrepareOptions(seed=seed + 1)
    assert splits(out, other) == splits(tmp_path / "other", other)


def test_a_run_killed_while_joining_leaves_the_old_set_and_completes_later(source, tmp_path, monkeypatch):
    out = tmp_path / "data"
    before = prepare([str(source)], out, PrepareOptions()).dataset.describe()

    def killed(*args):
        raise KeyboardInterrupt

    for step in ("write_statistics", "write_joined_stream"):
        with monkeypatch.context() as patch:
            patch.setattr(joining, step, killed)
            with pytest.raises(KeyboardInterrupt):
                prepare([str(source)], out, PrepareOptions(vlm_reuse_count=2))
        assert PackedDataset.open(out).describe() == before
    result = prepare([str(source)], out, PrepareOptions(vlm_reuse_count=2))
    assert result.num_read == 0
    assert result.dataset.meta.vlm_reuse_count == 2
    assert sorted(path.name for path in out.iterdir()) == [result.dataset.content.name, "dataset.json"]


def test_a_killed_first_run_keeps_its_parts(source, tmp_path, monkeypatch):
    out = tmp_path / "data"

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "join", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare([str(source)], out, PrepareOptions())
    with pytest.raises(UserError, match="holds no packed data set"):
        PackedDataset.open(out)
    assert prepare([str(source)], out, PrepareOptions()).num_read == 0


def test_faulty_episodes_are_left_out_or_refused(source, tmp_path):
    shutil.copytree(source, tmp_path / "source")
    bad = tmp_path / "source/Task_0/episode_000"
    (bad / "robot_states.csv").write_text("")
    result = prepare([str(tmp_path / "source")], tmp_path / "data", PrepareOptions())
    assert result.faulty == [str(bad)]
    assert len(result.dataset.episodes) == 4
    with pytest.raises(
        FaultyEpisodesError, match=r"--strict .* 1 of 5 .*episode_000: robot_states.csv: is empty"
    ):
        prepare([str(tmp_path / "source")], tmp_path / "strict", PrepareOptions(strict=True))
    with pytest.raises(
        FaultyEpisodesError, match=r"no episode is usable: 1 of 1 .*robot_states.csv: is empty"
    ):
        prepare([str(bad)], tmp_path / "none", PrepareOptions())
    assert not (tmp_path / "none").exists()


def test_changed_sources_are_told(tmp_path):
    write_data_set(tmp_path / "s", 3, seconds=0.6)
    packed = prepare([str(tmp_path / "s")], tmp_path / "d", PrepareOptions()).dataset
    assert packed.check_sources() == []
    image = next((tmp_path / "s/Task_0/episode_000/images/View1").iterdir())
    image.write_bytes(jpeg(999, 24))
    shutil.rmtree(tmp_path / "s/Task_0/episode_002")
    assert [line.rsplit(": ")[1] for line in packed.check_sources()] == ["has changed", "is gone"]


def test_a_set_moved_with_its_sources_still_finds_them(tmp_path):
    write_data_set(tmp_path / "a" / "s", 2, seconds=0.6)
    prepare([str(tmp_path / "a/s")], tmp_path / "a" / "d", PrepareOptions())
    os.rename(tmp_path / "a", tmp_path / "b")
    packed = PackedDataset.open(tmp_path / "b" / "d")
    assert packed.records[0].images[0].path.is_file()


def test_pose_only_and_sensor_only_sets_are_described(tmp_path):
    write_windows_episode(tmp_path / "s/t/e", views=(), has_sensor=False)
    write_windows_episode(tmp_path / "s/t/f", metadata={"robot_states_count": 0})
    (tmp_path / "s/t/f/robot_states.csv").unlink()
    packed = prepare([str(tmp_path / "s")], tmp_path / "d", PrepareOptions()).dataset
    assert [(e.has_images, e.has_sensor, e.tick_stop - e.tick_start) for e in packed.episodes] == [
        (False, False, 20),
        (True, True, 0),
    ]
    assert not len(packed.sample_ticks("all"))
    assert not len(packed.required_records())


def test_index_alignment_pairs_by_position(source, tmp_path):
    options = PrepareOptions(episode=EpisodeOptions(alignment="index"))
    packed = prepare([str(source / "Task_0/episode_000")], tmp_path / "d", options).dataset
    ticks = packed.sample_ticks("all")
    # 201 poses, an interval of 10: (201 − 10) // 10 samples, although 20 ticks have a next pose.
    assert len(ticks) == 19
    newest = packed.sensor_windows(ticks)[:, -1, 0].astype(float) * 64
    np.testing.assert_array_equal(newest, 65 * (np.minimum(np.arange(19), 19) + 1) - 1)
    stamps = [float(packed.records[i].images[0].path.stem) - START for i in packed.record_index(ticks)]
    # Pose 30 takes picture 30, or the last of the ten.
    np.testing.assert_allclose(stamps[:4], [0, 0, 0, 9 / 5], atol=1e-5)


def resident_bytes(path):
    """Pages of a mapped file that count as this process's memory."""
    total, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            is_ours = line.endswith(str(path))
        elif is_ours and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_reading_gives_mapped_pages_back(dataset, monkeypatch):
    expected = np.array(dataset.sensor)
    assert resident_bytes(dataset.content / "sensor.npy") >= dataset.sensor.nbytes
    monkeypatch.setattr("vla_jax.dataset.packed_dataset.MAX_MAPPED_BYTES", 1 << 20)
    dataset.sensor_windows(np.arange(len(dataset.ticks)))
    assert resident_bytes(dataset.content / "sensor.npy") < dataset.sensor.nbytes // 4
    np.testing.assert_array_equal(dataset.sensor, expected)


@pytest.mark.parametrize("damage", ["truncate", "remove", "version", "json"])
def test_a_damaged_set_is_told(damage, source, tmp_path):
    out = tmp_path / "d"
    content = prepare([str(source / "Task_0/episode_000")], out, PrepareOptions()).dataset.content
    if damage == "truncate":
        os.truncate(content / "sensor.npy", 5000)
    elif damage == "remove":
        (content / "delta.npy").unlink()
    elif damage == "version":
        index = json.loads((out / "dataset.json").read_text())
        (out / "dataset.json").write_text(json.dumps(index | {"format_version": 99}))
    else:
        (out / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="run prepare again"):
        PackedDataset.open(out)
    assert len(prepare([str(source / "Task_0/episode_000")], out, PrepareOptions()).dataset.episodes) == 1


def test_another_folder_is_never_overwritten(source, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("text")
    with pytest.raises(UserError, match="exists and is no data set"):
        prepare([str(source)], tmp_path / "d", PrepareOptions())
    with pytest.raises(UserError, match="no such data set"):
        PackedDataset.open(tmp_path / "e")
    with pytest.raises(UserError, match="holds no packed data set"):
        PackedDataset.open(tmp_path / "d")


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="action-hz"):
        PrepareOptions(episode=EpisodeOptions(action_hz=0))
    with pytest.raises(UserError, match="val-fraction"):
        PrepareOptions(val_fraction=1.5)
