"""A reader defined here goes through `prepare` without a change elsewhere: joints, two cameras, no sensor, no files."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feature_cache.worklist import make_worklist, read_images
from vla_jax.contracts.specs import ActionSpec, DataSpec
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.packed_dataset import PackedDataset
from vla_jax.dataset.preparation import FaultyEpisodesError, prepare
from vla_jax.errors import UserError
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.frame import Frame
from vla_jax.recordings.reader import EpisodeReader
from vla_jax.recordings.recording import Recording
from vla_jax.recordings.registry import register_reader, unregister_reader
from vla_jax.reporting.inspection import inspect_dataset, inspection_html

JOINTS = tuple(f"{arm}_{i}" for arm in ("left", "right") for i in range(7))
NUM_TICKS = 40
RATE_HZ = 50.0
CAMERAS = ("front", "wrist")


class LogFrame(Frame):
    """A picture inside a log: its locator is "<camera>/<number>", its bytes are made from the log's array."""

    kind = "message"

    def open(self):
        camera, number = self.locator.split("/")
        with np.load(self.folder / "log.npz") as log:
            pixels = log[camera][int(number)]
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PPM")
        return io.BytesIO(out.getvalue())


@dataclass(frozen=True)
class LogOptions:
    """Settings of the reader."""

    num_rows: int = NUM_TICKS


class LogReader(EpisodeReader):
    """Two arms' joints, two cameras, one file."""

    kind = "log"
    told_by = "log.npz"
    options = LogOptions

    def recognises(self, names):
        return "log.npz" in names

    def read(self, episode, options, *, with_sensor=True):
        with np.load(episode / "log.npz") as log:
            times, joints, actions = (
                log[name][: options.num_rows] for name in ("times", "joints", "actions")
            )
            if not np.isfinite(joints).all():
                raise EpisodeError("log.npz: a joint is not finite")
        return Recording(
            name=episode.name,
            format=self.kind,
            folder=episode,
            instruction="fold it",
            times=times,
            state=joints,
            state_names=JOINTS,
            actions=actions,
            action_names=JOINTS,
            action_units=("rad",) * 14,
            rate_hz=RATE_HZ,
            views={
                camera: [
                    self.frame(episode, f"{camera}/{i}", float(times[2 * i])) for i in range(NUM_TICKS // 2)
                ]
                for camera in CAMERAS
            },
        )

    def frame(self, episode, locator, time):
        return LogFrame(episode, locator, time)


@pytest.fixture
def reader():
    register_reader(LogReader())
    yield
    unregister_reader("log")


def write_log(folder: Path, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    log = {
        "times": 1e9 + np.arange(NUM_TICKS) / RATE_HZ,
        "joints": rng.normal(size=(NUM_TICKS, 14)),
        "actions": rng.normal(size=(NUM_TICKS, 14)).astype(np.float32),
    }
    log |= {camera: rng.integers(0, 255, (NUM_TICKS // 2, 8, 12, 3), np.uint8) for camera in CAMERAS}
    np.savez(folder / "log.npz", **log)
    return log


def options(**changes):
    return PrepareOptions(episode=EpisodeOptions(action_hz=RATE_HZ, **changes), horizon=16)


@pytest.fixture
def logs(tmp_path, reader):
    return [write_log(tmp_path / "source" / f"episode_{i}", i) for i in range(3)]


def test_joints_and_pictures_of_a_log_become_a_data_set(logs, tmp_path):
    result = prepare([str(tmp_path / "source")], tmp_path / "data", options())
    assert not result.findings
    dataset = PackedDataset.open(tmp_path / "data")
    train = [
        log["actions"] for log, entry in zip(logs, dataset.episodes, strict=True) if entry.split == "train"
    ]
    assert dataset.spec == DataSpec(
        actions=ActionSpec(
            JOINTS,
            ("rad",) * 14,
            16,
            RATE_HZ,
            low=tuple(np.concatenate(train).min(axis=0).tolist()),
            high=tuple(np.concatenate(train).max(axis=0).tolist()),
        ),
        views=CAMERAS,
        sensor=None,
        state=JOINTS,
    )
    assert not len(dataset.sensor)
    for log, entry in zip(logs, dataset.episodes, strict=True):
        ticks = np.arange(entry.tick_start, entry.tick_stop)
        np.testing.assert_array_equal(dataset.ticks.pose[ticks], log["joints"])
        rows = np.minimum(np.arange(NUM_TICKS)[:, None] + np.arange(16), NUM_TICKS - 1)
        np.testing.assert_array_equal(dataset.actions(ticks), log["actions"][rows])
        # A picture every other tick, and the features of the newest at each third.
        for tick in (0, 4, 11):
            record = dataset.records[dataset.record_index(ticks[[tick]])[0]]
            assert [image.view for image in record.images] == list(CAMERAS)
            for image in record.images:
                pixels = np.asarray(Image.open(io.BytesIO(image.read())))
                np.testing.assert_array_equal(pixels, log[image.view][tick // 3 * 3 // 2])
                assert image.frame.kind == "message"


def test_its_pictures_reach_the_export_and_the_inspection(logs, tmp_path):
    dataset = prepare([str(tmp_path / "source")], tmp_path / "data", options()).dataset
    (item, *_) = make_worklist("p", [(record.prompt, record.images) for record in dataset.records])
    for camera, (_, data) in zip(CAMERAS, read_images(item), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), logs[0][camera][0])
    page = inspection_html(inspect_dataset(dataset))
    assert all(name in page for name in (*CAMERAS, *JOINTS))
    assert dataset.check_sources() == []
    write_log(tmp_path / "other", 9)
    (tmp_path / "other" / "log.npz").replace(tmp_path / "source" / "episode_1" / "log.npz")
    assert [line.rsplit(": ")[1] for line in dataset.check_sources()] == ["has changed"]


def test_several_processes_read_it_too(logs, tmp_path):
    for i in range(3, 6):
        write_log(tmp_path / "source" / f"episode_{i}", i)
    one = prepare([str(tmp_path / "source")], tmp_path / "one", options()).dataset
    setting = PrepareOptions(episode=options().episode, horizon=16, num_workers=2)
    two = prepare([str(tmp_path / "source")], tmp_path / "two", setting).dataset
    assert two.index == one.index
    for name in ("delta", "pose", "image_digest", "image_path", "record"):
        np.testing.assert_array_equal(one.array(name), two.array(name))


def test_its_own_options_decide_what_is_read_again(logs, tmp_path):
    source, out = [str(tmp_path / "source")], tmp_path / "data"
    prepare(source, out, options())
    assert prepare(source, out, options(readers={"log": LogOptions()})).num_read == 0
    shorter = prepare(source, out, options(readers={"log": LogOptions(num_rows=39)}))
    assert shorter.num_read == 3
    assert len(shorter.dataset.ticks) == 3 * 39
    # The horizon decides nothing about an episode.
    longer = PrepareOptions(episode=options(readers={"log": LogOptions(num_rows=39)}).episode, horizon=20)
    again = prepare(source, out, longer)
    assert again.num_read == 0
    assert again.dataset.actions(np.array([0])).shape == (1, 20, 14)


def test_recorded_actions_keep_their_rate(logs, tmp_path):
    with pytest.raises(FaultyEpisodesError, match=r"recorded at 50 Hz, not at 10 Hz; use --action-hz 50"):
        prepare([str(tmp_path / "source")], tmp_path / "data", PrepareOptions())


def test_different_actions_do_not_go_together(logs, tmp_path):
    from tests.vla_jax.recordings.recorded_episodes import write_windows_episode

    write_windows_episode(tmp_path / "source" / "needle", robot_hz=50.0)
    with pytest.raises(
        UserError, match=r"episode_0 and .*needle have different actions, \(left_0 .*dx dy dz"
    ):
        prepare([str(tmp_path / "source")], tmp_path / "data", options())


def test_a_kind_has_one_reader(reader):
    with pytest.raises(ValueError, match="'log' episodes already"):
        register_reader(LogReader())


def test_without_its_reader_a_data_set_opens_and_names_it(logs, tmp_path):
    prepare([str(tmp_path / "source")], tmp_path / "data", options())
    unregister_reader("log")
    try:
        dataset = PackedDataset.open(tmp_path / "data")
        assert dataset.actions(np.array([0])).shape == (1, 16, 14)
        with pytest.raises(UserError, match="no reader for 'log' episodes"):
            dataset.records[0]
        assert json.loads((tmp_path / "data" / "dataset.json").read_text())["spec"]["views"] == list(CAMERAS)
    finally:
        register_reader(LogReader())


class BookReader(LogReader):
    """Several logs in one folder, as one archive each: an episode's path is made up."""

    kind = "book"
    told_by = "book/"

    def recognises(self, names):
        return "book/" in names

    def episodes(self, folder):
        return [folder / path.stem for path in sorted((folder / "book").glob("*.npz"))]

    def is_there(self, episode):
        return self._archive(episode).is_file()

    def fingerprint(self, episode):
        status = self._archive(episode).stat()
        return f"{episode.name} {status.st_size} {status.st_mtime_ns}"

    def read(self, episode, options, *, with_sensor=True):
        with np.load(self._archive(episode)) as log:
            return Recording(
                name=episode.name,
                format=self.kind,
                folder=episode,
                instruction="fold it",
                times=log["times"],
                actions=log["actions"],
                action_names=JOINTS,
                action_units=("rad",) * 14,
                rate_hz=RATE_HZ,
            )

    def _archive(self, episode):
        return episode.parent / "book" / f"{episode.name}.npz"


def test_one_folder_may_hold_several_episodes(tmp_path):
    logs = [write_log(tmp_path / "set" / f"log_{i}", i) for i in range(2)]
    (tmp_path / "set" / "book").mkdir()
    for i in range(2):
        (tmp_path / "set" / f"log_{i}" / "log.npz").replace(tmp_path / "set" / "book" / f"page_{i}.npz")
    register_reader(BookReader(), before="legacy")
    try:
        dataset = prepare([str(tmp_path / "set")], tmp_path / "data", options()).dataset
        assert [entry.name for entry in dataset.episodes] == ["page_0", "page_1"]
        assert dataset.spec.state == ()
        assert dataset.ticks.pose.shape == (2 * NUM_TICKS, 0)
        np.testing.assert_array_equal(dataset.ticks.delta, np.concatenate([log["actions"] for log in logs]))
        (tmp_path / "set" / "book" / "page_1.npz").unlink()
        assert dataset.check_sources() == [f"{tmp_path / 'set' / 'page_1'}: is gone"]
    finally:
        unregister_reader("book")
