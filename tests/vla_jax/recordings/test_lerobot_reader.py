"""LeRobot data sets: rows bit for bit, pictures by their time, and what columns are taken for."""

import io
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.vla_jax.recordings.lerobot_sets import CAMERAS, JOINTS, SHIPPED, write_set
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.preparation import prepare
from vla_jax.errors import UserError
from vla_jax.recordings import hub
from vla_jax.recordings.discovery import find_episodes
from vla_jax.recordings.lerobot.meaning import LeRobotOptions
from vla_jax.recordings.lerobot.reader import LeRobotReader
from vla_jax.recordings.lerobot.videos import VideoDecoder, video_decoder


def options(**own):
    return PrepareOptions(episode=EpisodeOptions(readers={"lerobot": LeRobotOptions(**own)}))


def pixels(frame):
    return np.asarray(Image.open(io.BytesIO(frame.read())).convert("RGB"), np.int32)


@pytest.mark.parametrize("version", ["v30", "v21"])
def test_shipped_sets_give_what_the_package_returns(version, tmp_path):
    returned = np.load(SHIPPED / f"{version}_returned.npz")
    result = prepare([str(SHIPPED / version)], tmp_path / "data", PrepareOptions())
    assert not result.faulty
    dataset = result.dataset
    assert dataset.meta.action_hz == 5.0
    assert dataset.ticks.delta.tobytes() == returned["low/action"].tobytes()
    assert dataset.ticks.pose.astype(np.float32).tobytes() == returned["low/observation.state"].tobytes()
    np.testing.assert_array_equal(dataset.ticks.time, returned["low/timestamp"])
    prompts = [dataset.episodes[i].instruction for i in dataset.ticks.episode]
    assert prompts == returned["low/task"].tolist()
    every = int(returned["every"])
    for view in ("View1", "View2", "View3"):
        expected = returned[f"frames/observation.images.{view}"].astype(np.int32)
        for number, row in enumerate(range(0, len(dataset.ticks), every)):
            shown = dataset.records[int(dataset.ticks.instant[row])].images
            (image,) = (image for image in shown if image.view == view)
            assert image.size() == (64, 64)
            # The package's frames were decoded by the same library; others round colours by a level or two.
            assert np.abs(pixels(image) - expected[number]).mean() < 2.0
    # The package's decoder and ours agree on pictures, so they must on which picture: it differs from the others.
    first = returned["frames/observation.images.View1"].astype(np.int32)
    assert np.abs(first[0] - first[1]).mean() > 2.0


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_every_row_has_its_own_picture(version, codec, tmp_path):
    """Decoded in order, backwards, and by several threads at once."""
    written = write_set(tmp_path / "set", version, (9, 7, 5), codec=codec)
    recordings = [
        LeRobotReader().read(path, LeRobotOptions()) for path in LeRobotReader().episodes(tmp_path / "set")
    ]
    assert [len(recording.times) for recording in recordings] == [9, 7, 5]
    for camera in CAMERAS:
        frames = [frame for recording in recordings for frame in recording.views[camera.rpartition(".")[2]]]
        expected = written.pictures[camera].astype(np.int32)
        apart = np.abs(np.diff(expected, axis=0)).mean(axis=(1, 2, 3)).min()
        assert apart > 20
        with ThreadPoolExecutor(4) as threads:
            for order in (range(21), range(20, -1, -1), np.random.default_rng(0).permutation(21)):
                shown = list(threads.map(lambda i, frames=frames: pixels(frames[i]), order))
                assert max(np.abs(shown[n] - expected[i]).mean() for n, i in enumerate(order)) < 4


def test_a_video_is_decoded_once_and_sought_at_most_at_its_beginning(tmp_path, monkeypatch):
    write_set(tmp_path / "set", "v3.0", (60, 60), keyframe_every=12)
    reader = LeRobotReader()
    seeks = []

    class Counting(VideoDecoder):
        def _decode_to(self, seconds):
            container = self._container

            class Watched:
                def seek(self, *arguments, **named):
                    seeks.append(seconds)
                    return container.seek(*arguments, **named)

                def decode(self, stream):
                    return container.decode(stream)

            self._container = Watched()
            try:
                return super()._decode_to(seconds)
            finally:
                self._container = container

    monkeypatch.setattr("vla_jax.recordings.lerobot.videos.VideoDecoder", Counting)
    for path in reader.episodes(tmp_path / "set"):
        for frame in reader.read(path, LeRobotOptions()).views["top"]:
            frame.read()
    assert seeks == [0.0]


def test_a_fresh_decoder_goes_straight_to_an_episode(tmp_path):
    written = write_set(tmp_path / "set", "v3.0", (60, 60), keyframe_every=12)
    recording = LeRobotReader().read(tmp_path / "set" / "episode_000001", LeRobotOptions())
    shown = pixels(recording.views["top"][30])
    assert np.abs(shown - written.pictures[CAMERAS[0]][90].astype(np.int32)).mean() < 4


def test_all_threads_share_a_video_s_decoder(tmp_path):
    write_set(tmp_path / "set")
    path = tmp_path / "set" / "videos" / CAMERAS[0] / "chunk-000" / "file-000.mp4"
    found = []
    threads = [threading.Thread(target=lambda: found.append(video_decoder(path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1


def test_more_videos_than_are_kept_open_are_read_by_threads(tmp_path, monkeypatch):
    """Each thread's decoder stays open for as long as it is used, and no frame is mistaken for another video's."""
    from vla_jax.recordings.lerobot import videos

    monkeypatch.setattr(videos, "MAX_OPEN_VIDEOS", 2)
    written = write_set(tmp_path / "set", "v2.1", (6,) * 6, cameras=CAMERAS[:1])
    reader = LeRobotReader()
    recordings = [reader.read(path, LeRobotOptions()) for path in reader.episodes(tmp_path / "set")]
    frames = [frame for recording in recordings for frame in recording.views["top"]]
    order = np.random.default_rng(0).permutation(36)
    with ThreadPoolExecutor(6) as threads:
        shown = list(threads.map(lambda i: pixels(frames[i]), order))
    expected = written.pictures[CAMERAS[0]].astype(np.int32)
    assert max(np.abs(shown[n] - expected[i]).mean() for n, i in enumerate(order)) < 4


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_pictures_in_parquet_are_read_as_they_are(version, tmp_path):
    written = write_set(tmp_path / "set", version, (40, 30), pictures_as="image")
    dataset = prepare([str(tmp_path / "set")], tmp_path / "data", PrepareOptions()).dataset
    assert dataset.meta.views == ("top", "wrist")
    for row in (*range(70), 3, 69, 20):
        for image in dataset.records[int(dataset.ticks.instant[row])].images:
            camera = f"observation.images.{image.view}"
            np.testing.assert_array_equal(pixels(image), written.pictures[camera][row])


def test_fourteen_joints_have_the_data_s_names_and_rate(tmp_path):
    written = write_set(tmp_path / "set", fps=20)
    result = prepare([str(tmp_path / "set")], tmp_path / "data", PrepareOptions(horizon=16))
    spec = result.dataset.spec
    assert spec.actions.names == spec.state == JOINTS
    assert spec.actions.units == ("",) * 14
    assert (spec.actions.rate_hz, spec.actions.horizon, spec.sensor) == (20.0, 16, None)
    np.testing.assert_array_equal(result.dataset.ticks.delta, written.numbers["action"])
    (rows,) = result.choices.values()
    chosen = dict(rows)
    assert chosen["views"] == "top (video 32×48×3), wrist (video 32×48×3)"
    assert chosen["actions"].startswith("action [14] (left_0.pos, ")
    assert chosen["sensor"] == "none"


def test_a_rate_that_is_given_and_is_not_the_data_s_is_a_fault(tmp_path):
    write_set(tmp_path / "set", fps=20)
    with pytest.raises(UserError, match="actions are recorded at 20 Hz, not at 10 Hz; use --action-hz 20"):
        prepare(
            [str(tmp_path / "set")], tmp_path / "data", PrepareOptions(episode=EpisodeOptions(action_hz=10))
        )
    write_set(tmp_path / "other", fps=10)
    with pytest.raises(UserError, match=r"different rates: 10 Hz in .*other, 20 Hz in .*set"):
        prepare([str(tmp_path / "set"), str(tmp_path / "other")], tmp_path / "data", PrepareOptions())


def test_row_stride_takes_each_nth_row(tmp_path):
    written = write_set(tmp_path / "set", lengths=(9, 6), fps=30)
    dataset = prepare([str(tmp_path / "set")], tmp_path / "data", options(row_stride=3)).dataset
    assert dataset.meta.action_hz == 10.0
    np.testing.assert_array_equal(dataset.ticks.delta, written.numbers["action"][[0, 3, 6, 9, 12]])
    assert len(dataset.array("image_time")) == 2 * 5


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_an_episode_of_several_tasks_is_told_apart_but_split_as_one(version, tmp_path):
    tasks = ["reach"] * 5 + ["grasp"] * 3 + ["reach"] * 2 + ["push"] * 6
    written = write_set(tmp_path / "set", version, (10, 6), tasks=tasks)
    for seed in range(6):
        chosen = PrepareOptions(val_fraction=0.5, seed=seed)
        dataset = prepare([str(tmp_path / "set")], tmp_path / "data", chosen).dataset
        assert [entry.name for entry in dataset.episodes] == [
            "episode_000000.part-0",
            "episode_000000.part-1",
            "episode_000000.part-2",
            "episode_000001",
        ]
        sides = [entry.split for entry in dataset.episodes]
        assert len(set(sides[:3])) == 1
        assert set(sides) == {"train", "val"}
    assert [dataset.episodes[i].instruction for i in dataset.ticks.episode] == tasks
    np.testing.assert_array_equal(dataset.ticks.delta, written.numbers["action"])


def sensor_set(folder, window, **changes):
    rng = np.random.default_rng(1)
    numbers = {
        "action": rng.normal(size=(14, 3)).astype(np.float32),
        "observation.sensor": rng.normal(size=(14, *window)).astype(np.float32),
    } | changes
    return write_set(folder, numbers=numbers, fps=10)


def test_sensor_windows_become_one_stream(tmp_path):
    written = sensor_set(tmp_path / "set", (5, 4))
    chosen = PrepareOptions(episode=EpisodeOptions(sensor_dtype="float32"), sensor_window_size=5)
    dataset = prepare([str(tmp_path / "set")], tmp_path / "data", chosen).dataset
    assert (dataset.spec.sensor.channels, dataset.spec.sensor.hz) == (4, 50.0)
    ticks = np.arange(14)
    np.testing.assert_array_equal(dataset.sensor_windows(ticks), written.numbers["observation.sensor"])
    # Without asking, none is read.
    bare = prepare(
        [str(tmp_path / "set")], tmp_path / "bare", PrepareOptions(episode=EpisodeOptions(sensor=False))
    )
    assert bare.dataset.spec.sensor is None


def test_a_vector_is_a_sensor_where_it_is_named(tmp_path):
    written = sensor_set(tmp_path / "set", (6,))
    bare = prepare([str(tmp_path / "set")], tmp_path / "bare", PrepareOptions()).dataset
    assert bare.spec.sensor is None
    own = LeRobotOptions(sensor_feature="observation.sensor")
    chosen = EpisodeOptions(sensor_dtype="float32", readers={"lerobot": own})
    dataset = prepare([str(tmp_path / "set")], tmp_path / "data", PrepareOptions(episode=chosen)).dataset
    assert (dataset.spec.sensor.channels, dataset.spec.sensor.hz) == (6, 10.0)
    np.testing.assert_array_equal(dataset.sensor, written.numbers["observation.sensor"])


def test_rows_without_a_sensor_are_left_out_of_the_stream(tmp_path):
    has = np.array([[1], [1], [0], [0]] * 3 + [[1]] * 2, bool)
    sensor_set(tmp_path / "set", (5, 4), **{"observation.has_sensor": has})
    dataset = prepare([str(tmp_path / "set")], tmp_path / "data", PrepareOptions()).dataset
    assert len(dataset.sensor) == 5 * has.sum()


def test_the_shipped_actions_are_the_changes_of_the_shipped_poses(tmp_path):
    """Its poses are mm and Euler degrees, its actions their changes, as BridgeData's converter made them."""
    recorded = prepare([str(SHIPPED / "v30")], tmp_path / "recorded", PrepareOptions()).dataset
    chosen = options(pose_feature="observation.state", pose_length="mm")
    made = prepare([str(SHIPPED / "v30")], tmp_path / "made", chosen).dataset
    assert made.spec.actions.names == ("dx", "dy", "dz", "da", "db", "dr", "gripper")
    assert made.spec.actions.units == ("mm", "mm", "mm", "deg", "deg", "deg", "")
    for i, entry in enumerate(made.episodes):
        before = recorded.episodes[i]
        np.testing.assert_allclose(
            made.ticks.delta[entry.tick_start : entry.tick_stop],
            recorded.ticks.delta[before.tick_start : before.tick_stop - 1],
            atol=1e-4,
        )


def test_options_that_do_not_fit_are_one_line(tmp_path):
    write_set(tmp_path / "set")
    for own, message in (
        (
            {"action_feature": "actoin"},
            "--action-feature actoin: there is no such feature of numbers; there are obs",
        ),
        ({"state_feature": CAMERAS[0]}, "no such feature of numbers"),
        ({"action_units": ("mm",)}, "--action-units: 1 are given, action has 14"),
        ({"pose_feature": "timestamp"}, "needs 6 numbers"),
        ({"pose_feature": "action", "gripper": "action["}, "is not FEATURE or FEATURE"),
        ({"pose_feature": "action", "gripper": "action[14]"}, "has 14 numbers"),
        ({"sensor_feature": "nothing"}, "--sensor-feature nothing"),
        ({"sensor_feature": "action", "sensor_hz": -1.0}, "rows a second are impossible"),
        ({"row_stride": 0}, "--row-stride 0 is impossible"),
    ):
        with pytest.raises(UserError, match="set: ") as error:
            prepare([str(tmp_path / "set")], tmp_path / "data", options(**own))
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_units_are_what_is_given(tmp_path):
    write_set(tmp_path / "set")
    units = ("mm", "deg", *("none",) * 12)
    dataset = prepare([str(tmp_path / "set")], tmp_path / "data", options(action_units=units)).dataset
    assert dataset.spec.actions.units == ("mm", "deg", *("",) * 12)
    assert prepare([str(tmp_path / "set")], tmp_path / "data", options(action_units=units)).num_read == 0


def test_a_second_run_reads_what_has_changed(tmp_path):
    write_set(tmp_path / "set", "v2.1", (8, 6, 4))
    assert prepare([str(tmp_path / "set")], tmp_path / "data", PrepareOptions()).num_read == 3
    result = prepare([str(tmp_path / "set")], tmp_path / "data", PrepareOptions())
    assert result.num_read == 0
    video = next((tmp_path / "set/videos").rglob("episode_000001.mp4"))
    video.write_bytes(video.read_bytes())
    assert result.dataset.check_sources() == [f"{tmp_path}/set/episode_000001: has changed"]
    assert prepare([str(tmp_path / "set")], tmp_path / "data", PrepareOptions()).num_read == 1
    shutil.rmtree(tmp_path / "set")
    assert all(line.endswith("is gone") for line in result.dataset.check_sources())


def test_folders_that_only_look_alike_are_searched_below(tmp_path):
    write_set(tmp_path / "data" / "inner")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{}")
    found = find_episodes([str(tmp_path)])
    assert [episode.path.name for episode in found] == ["episode_000000", "episode_000001"]
    assert found[0].labels[0] == "lerobot"


def test_neither_torch_nor_lerobot_is_imported(tmp_path):
    script = (
        "import sys\n"
        "from vla_jax.dataset.options import PrepareOptions\n"
        "from vla_jax.dataset.preparation import prepare\n"
        f"prepare([{str(SHIPPED / 'v30')!r}], {str(tmp_path / 'd')!r}, PrepareOptions())\n"
        "assert not {'torch', 'lerobot', 'jax', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=SHIPPED.parents[2])


def test_memory_does_not_grow_with_the_set(tmp_path):
    """Ten times as many frames: the frames that are kept are bounded."""
    from vla_jax.recordings.lerobot import videos

    write_set(tmp_path / "set", "v3.0", (100,) * 3, cameras=CAMERAS[:1], size=(64, 64))
    limit = videos.MAX_KEPT_BYTES
    try:
        videos.MAX_KEPT_BYTES = 20 * 64 * 64 * 3 // 2
        prepare([str(tmp_path / "set")], tmp_path / "data", PrepareOptions())
        assert 0 < len(videos._KEPT._frames) <= 20
        assert videos._KEPT._size <= videos.MAX_KEPT_BYTES
    finally:
        videos.MAX_KEPT_BYTES = limit


def test_the_hub_is_asked_by_name_and_revision(tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / "0123abc"
    write_set(snapshot)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    # As the hub's cache has it: links to the files themselves, which lie beside.
    for number, path in enumerate(sorted(snapshot.rglob("*.*"))):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    asked = []

    def download(name, **named):
        asked.append((name, named))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    dataset = prepare(["hub:user/some.set@v3.0"], tmp_path / "data", PrepareOptions()).dataset
    assert asked == [("user/some.set", {"repo_type": "dataset", "revision": "v3.0"})]
    assert [entry.source for entry in dataset.episodes] == ["hub:user/some.set@v3.0"] * 2
    assert dataset.episodes[0].path.endswith("0123abc/episode_000000")


@pytest.mark.parametrize("source", ["hub:user", "hub:a/b/c", "hub:../b", "hub:a/b@c d"])
def test_what_is_no_name_on_the_hub_is_refused(source):
    with pytest.raises(UserError, match=r"is not hub:USER/NAME|cannot be fetched"):
        hub.fetch(source)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def refuse(*arguments, **named):
        raise OSError("no network\nhere")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match=r"cannot be fetched from the hub \(no network here\)"):
        hub.fetch("hub:user/name")
