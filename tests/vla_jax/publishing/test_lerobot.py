"""Published data sets: read back by our reader and, where it is installed, by the lerobot package."""

import io
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from tests.commands import REPOSITORY
from tests.vla_jax.recordings.lerobot_sets import CAMERAS, SHIPPED, write_set
from tests.vla_jax.recordings.recorded_episodes import write_windows_episode
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.dataset.preparation import prepare
from vla_jax.errors import UserError
from vla_jax.publishing import lerobot
from vla_jax.publishing.episode import ROWS_FILE, write_episode
from vla_jax.publishing.feature_statistics import joined, vector_statistics
from vla_jax.publishing.lerobot import publish
from vla_jax.publishing.settings import PublishOptions
from vla_jax.publishing.video import write_video

FLOAT32 = EpisodeOptions(sensor_dtype="float32")


def prepared(source, out, episode=FLOAT32):
    return prepare([str(source)], out, PrepareOptions(episode=episode)).dataset


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image.read())).convert("RGB"), np.int32)


def difference(a: PackedDataset, b: PackedDataset) -> float:
    """Returns the largest mean difference, in grey levels, between the pictures that two sets' ticks see."""
    largest = 0.0
    for x, y in zip(a.ticks.instant.tolist(), b.ticks.instant.tolist(), strict=True):
        for ours, theirs in zip(a.records[x].images, b.records[y].images, strict=True):
            assert ours.view == theirs.view
            largest = max(largest, np.abs(pixels(ours) - pixels(theirs)).mean())
    return largest


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_what_is_published_is_read_back(codec, tmp_path):
    """Rows bit for bit; pictures through another encoder."""
    write_set(tmp_path / "set", lengths=(9, 7, 5), tasks=["a"] * 9 + ["b"] * 7 + ["a"] * 5, size=(64, 96))
    before = prepared(tmp_path / "set", tmp_path / "data")
    result = publish(
        before, tmp_path / "out", PublishOptions(codec=codec, license="cc-by-4.0", robot_type="two arms")
    )
    assert (result.num_episodes, result.num_rows, result.left_out) == (3, 21, ())
    after = prepared(tmp_path / "out", tmp_path / "again")
    np.testing.assert_array_equal(after.ticks.delta, before.ticks.delta)
    np.testing.assert_array_equal(after.ticks.pose, before.ticks.pose)
    np.testing.assert_array_equal(after.ticks.time, before.ticks.time)
    assert after.spec.actions.names == before.spec.actions.names
    assert [entry.instruction for entry in after.episodes] == ["a", "b", "a"]
    assert difference(after, before) < 3.0
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["features"][CAMERAS[0]]["info"]["video.codec"] == codec
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 21, 2)
    card = (tmp_path / "out/README.md").read_text()
    assert "license: cc-by-4.0" in card
    assert "# two arms recordings" in card
    assert not (tmp_path / ".out.building").exists()


def test_the_shipped_set_goes_out_and_in_again(tmp_path):
    before = prepared(SHIPPED / "v30", tmp_path / "data")
    publish(before, tmp_path / "out", PublishOptions())
    after = prepared(tmp_path / "out", tmp_path / "again")
    np.testing.assert_array_equal(after.ticks.delta, before.ticks.delta)
    assert difference(after, before) < 5.0
    # What the package's own file says of each feature, as far as we say it, too.
    ours, theirs = (
        json.loads((folder / "meta/info.json").read_text()) for folder in (tmp_path / "out", SHIPPED / "v30")
    )
    assert set(theirs) <= set(ours)
    assert sorted(ours["features"]) == sorted(theirs["features"])
    for key, feature in theirs["features"].items():
        assert ours["features"][key]["shape"] == feature["shape"]
        assert ours["features"][key]["dtype"] == feature["dtype"]
        if feature["dtype"] == "video":
            assert set(ours["features"][key]["info"]) == set(feature["info"])
    columns = {
        folder: pyarrow.parquet.read_schema(folder / "meta/episodes/chunk-000/file-000.parquet")
        for folder in (tmp_path / "out", SHIPPED / "v30")
    }
    assert {name for name in columns[SHIPPED / "v30"].names if "meta/" not in name} <= set(
        columns[tmp_path / "out"].names
    )
    stats = [
        json.loads((folder / "meta/stats.json").read_text()) for folder in (tmp_path / "out", SHIPPED / "v30")
    ]
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(stats[0]["action"][name], stats[1]["action"][name], rtol=1e-4, atol=1e-4)
    assert np.shape(stats[0]["observation.images.View1"]["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(
        stats[0]["observation.images.View1"]["mean"], stats[1]["observation.images.View1"]["mean"], atol=0.01
    )


@pytest.fixture
def lab(tmp_path):
    """Two lab episodes with sensor and one without, prepared."""
    for i in range(3):
        write_windows_episode(tmp_path / f"s/t/e{i}", seed=i, seconds=1.0, has_sensor=i != 1)
    return prepared(tmp_path / "s", tmp_path / "data")


def test_sensor_windows_units_and_rates_come_back(lab, tmp_path):
    publish(lab, tmp_path / "out", PublishOptions())
    after = prepared(tmp_path / "out", tmp_path / "again")
    assert after.spec.actions.units == lab.spec.actions.units
    assert (after.spec.sensor, after.spec.state) == (lab.spec.sensor, lab.spec.state)
    # The second camera begins a moment after the first tick, which is not published.
    kept = np.concatenate([np.arange(entry.tick_start + 1, entry.tick_stop) for entry in lab.episodes])
    np.testing.assert_array_equal(after.ticks.delta, lab.ticks.delta[kept])
    np.testing.assert_array_equal(after.ticks.pose, lab.ticks.pose[kept].astype(np.float32))
    np.testing.assert_array_equal(after.has_sensor(np.arange(len(kept))), lab.has_sensor(kept))
    np.testing.assert_array_equal(after.sensor_windows(np.arange(len(kept))), lab.sensor_windows(kept))


def test_files_are_bounded_and_episodes_are_found_in_them(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot, "FILES_PER_CHUNK", 2)
    # 9 rows of a quarter of a megabyte, and noise does not shrink.
    publish(lab, tmp_path / "out", PublishOptions(data_mb=1))
    files = sorted(
        path.relative_to(tmp_path / "out/data").as_posix()
        for path in (tmp_path / "out/data").rglob("*.parquet")
    )
    assert files == ["chunk-000/file-000.parquet", "chunk-000/file-001.parquet", "chunk-001/file-000.parquet"]
    after = prepared(tmp_path / "out", tmp_path / "again")
    assert [entry.tick_stop - entry.tick_start for entry in after.episodes] == [9, 9, 9]


def test_files_that_fit_go_together(tmp_path):
    paths = []
    for i, size in enumerate((600_000, 300_000, 200_000, 1_500_000, 100)):
        paths.append(tmp_path / str(i))
        paths[-1].write_bytes(bytes(size))
    assert [group for _, group in lerobot._grouped(paths, 1)] == [[0, 1], [2], [3], [4]]


def counted(monkeypatch) -> list[int]:
    """Returns the list of the episodes that are written from now on."""
    written: list[int] = []

    def counting(*arguments):
        written.append(arguments[2])
        return write_episode(*arguments)

    monkeypatch.setattr(lerobot, "write_episode", counting)
    return written


def test_it_goes_on_where_it_was_killed(lab, tmp_path, monkeypatch):
    publish(lab, tmp_path / "whole", PublishOptions())
    done = []

    def dies(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments[2])
        return write_episode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(lerobot, "write_episode", dies)
        with pytest.raises(KeyboardInterrupt):
            publish(lab, tmp_path / "out", PublishOptions())
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.building/episode_000001" / ROWS_FILE).is_file()
    again = counted(monkeypatch)
    publish(lab, tmp_path / "out", PublishOptions())
    assert (done, again) == ([0, 1], [2])
    for path in filter(Path.is_file, (tmp_path / "whole").rglob("*")):
        assert (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes(), (
            path
        )
    assert not (tmp_path / ".out.building").exists()


def test_other_settings_begin_anew(lab, tmp_path, monkeypatch):
    def dies(*arguments):
        write_episode(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lerobot, "write_episode", dies)
        with pytest.raises(KeyboardInterrupt):
            publish(lab, tmp_path / "out", PublishOptions())
    again = counted(monkeypatch)
    publish(lab, tmp_path / "out", PublishOptions(crf=40))
    assert again == [0, 1, 2]


def test_pictures_of_odd_size_keep_it(tmp_path):
    write_windows_episode(tmp_path / "s/t/e", views=("View1",), has_sensor=False, seconds=1.0)
    for path in (tmp_path / "s").rglob("*.jpg"):
        Image.new("RGB", (17, 13), (200, 30, 60)).save(path)
    publish(prepared(tmp_path / "s", tmp_path / "data"), tmp_path / "out", PublishOptions())
    (image,) = prepared(tmp_path / "out", tmp_path / "again").records[0].images
    assert image.size() == (13, 17)
    np.testing.assert_allclose(pixels(image).mean(axis=(0, 1)), (200, 30, 60), atol=4)


def test_what_cannot_be_published_is_said(lab, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    with pytest.raises(UserError, match=r"there: exists; choose a new folder"):
        publish(lab, tmp_path / "there", PublishOptions())
    write_windows_episode(tmp_path / "s/t/without", views=("View1",), seconds=1.0)
    more = prepared(tmp_path / "s", tmp_path / "more")
    result = publish(more, tmp_path / "out", PublishOptions())
    assert result.num_episodes == 3
    assert [line.split(": ", 1)[1] for line in result.left_out] == [
        "never shows all of the views View1, View2 at once"
    ]
    slow = prepared(tmp_path / "s", tmp_path / "slow", EpisodeOptions(action_hz=2.5))
    with pytest.raises(UserError, match=r"rates are whole numbers, not 2.5 Hz"):
        publish(slow, tmp_path / "other", PublishOptions())
    for wrong in ({"crf": 99}, {"data_mb": 0}, {"keyframe_every": 0}):
        with pytest.raises(UserError, match="impossible"):
            PublishOptions(**wrong)
    next((tmp_path / "s/t/e0/images/View2").glob("*.jpg")).unlink()
    with pytest.raises(UserError, match=r"\.jpg: cannot be read"):
        publish(more, tmp_path / "other", PublishOptions())
    assert not (tmp_path / "other").exists()


def test_statistics_of_parts_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 3)) * [1, 10, 100] + [5, 0, -3]
    together = joined([vector_statistics(values[:10]), vector_statistics(values[10:])])
    whole = vector_statistics(values)
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(together[name], whole[name])


@pytest.mark.slow
@pytest.mark.skipif(
    "LEROBOT_PYTHON" not in os.environ, reason="LEROBOT_PYTHON names no Python that has lerobot"
)
@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_the_lerobot_package_opens_what_is_published(codec, lab, tmp_path):
    write_set(tmp_path / "set", lengths=(9, 7, 5), size=(64, 96))
    for name, dataset in (("joints", prepared(tmp_path / "set", tmp_path / "joint data")), ("lab", lab)):
        publish(dataset, tmp_path / name, PublishOptions(codec=codec))
        after = prepared(tmp_path / name, tmp_path / f"{name} again")
        subprocess.run(
            [
                os.environ["LEROBOT_PYTHON"],
                REPOSITORY / "tests/lerobot_package.py",
                tmp_path / name,
                tmp_path / "found.npz",
            ],
            check=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"},
        )
        found = np.load(tmp_path / "found.npz")
        assert found["action"].tobytes() == after.ticks.delta.tobytes()
        assert found["observation.state"].tobytes() == after.ticks.pose.astype(np.float32).tobytes()
        assert found["task"].tolist() == [after.episodes[i].instruction for i in after.ticks.episode]
        np.testing.assert_array_equal(found["loaded"], np.arange(len(after.ticks)))
        assert found["chunk_shape"].tolist()[1:] == [4, after.spec.actions.size]
        if "observation.sensor" in found:
            ticks = np.flatnonzero(after.has_sensor(np.arange(len(after.ticks))))
            windows = after.sensor_windows(ticks).astype(np.float32)
            np.testing.assert_array_equal(found["observation.sensor"][ticks], windows)
        for row, instant in enumerate(after.ticks.instant.tolist()):
            for image in after.records[instant].images:
                theirs = found[f"observation.images.{image.view}"][row].astype(np.int32)
                assert np.abs(pixels(image) - theirs).mean() < 2.0


def test_encoding_leaves_the_priority_of_the_program_as_it_was(tmp_path):
    """libsvtav1 takes real-time priority where it may."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    pictures = np.zeros((3, 64, 64, 3), np.uint8)
    write_video(tmp_path / "video.mp4", pictures, 10, PublishOptions(codec="av1"))
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_equal_pictures_make_equal_files_whatever_the_memory_held(tmp_path):
    """x264 may read what nothing wrote: rarely, so that many files are compared."""
    rng = np.random.default_rng(0)
    pictures = np.repeat(rng.integers(0, 256, (5, 12, 8, 3), dtype=np.uint8), 2, axis=0)
    files, held = set(), []
    for _ in range(600):
        # What the program holds and gives back meanwhile decides which memory the encoder gets.
        held.append(bytearray(rng.integers(1, 50_000)))
        if rng.random() < 0.5:
            held.pop(rng.integers(len(held)))
        write_video(tmp_path / "video.mp4", pictures, 10, PublishOptions())
        files.add((tmp_path / "video.mp4").read_bytes())
    assert len(files) == 1
