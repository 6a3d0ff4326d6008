"""Streams by clocks that differ, rates that cannot be, numbers in other units: found in the data, and said."""

import json
import subprocess

import numpy as np
import pytest

from tests.vla_jax.recordings.recorded_episodes import START, poses_csv, write_windows_episode
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.preparation import BUILDING, FaultyEpisodesError, prepare
from vla_jax.errors import UserError


def episode_of(tmp_path, **options):
    return write_windows_episode(tmp_path / "s" / "t" / "e", **{"seconds": 6.0, **options})


def prepared(tmp_path, **options):
    return prepare(
        [str(tmp_path / "s")],
        tmp_path / "d",
        PrepareOptions(val_fraction=0, episode=EpisodeOptions(**options)),
    )


def fault_of(tmp_path, **options):
    with pytest.raises(FaultyEpisodesError) as caught:
        prepared(tmp_path, **options)
    reasons = [finding.reason for finding in caught.value.findings if finding.is_fault]
    assert not any("\n" in reason for reason in reasons)
    assert not any("no poses" in finding.reason for finding in caught.value.findings)
    return "; ".join(reasons)


def rename_pictures(folder, name, views=("View1", "View2")):
    """Gives picture k, taken at some time, another name."""
    for view in views:
        for k, path in enumerate(sorted((folder / "images" / view).iterdir())):
            path.rename(path.with_name(f"{name(k, float(path.stem))}.jpg"))


def change_pose_times(folder, change_times):
    rows = np.loadtxt(folder / "robot_states.csv", delimiter=",", skiprows=1)
    (folder / "robot_states.csv").write_text(poses_csv(change_times(rows[:, 0]), rows[:, 3:]))


def change_metadata(folder, **changes):
    file = folder / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            lambda k, time: f"{k + 1:06d}",
            "View1: its times 1 to 30 are no unix times, those of the poses begin at",
        ),
        (
            lambda k, time: f"{time - 3600:.6f}",
            "View1: begins 60.0 min before the poses, and no tick sees it; their",
        ),
        (
            lambda k, time: f"{time + 3600:.6f}",
            "begins 60.0 min after the poses, and no tick sees it; their",
        ),
        (lambda k, time: f"{1000 * time:.3f}", "is no unix time in seconds, it looks like milliseconds"),
        (lambda k, time: f"{1e9 * time:.0f}", "is no unix time in seconds, it looks like nanoseconds"),
    ],
    ids=["numbered", "an hour behind", "an hour ahead", "milliseconds", "nanoseconds"],
)
def test_pictures_by_another_clock_are_a_fault(name, told, tmp_path):
    rename_pictures(episode_of(tmp_path), name)
    assert told in fault_of(tmp_path)


def test_pairs_by_index_ask_no_clock(tmp_path):
    rename_pictures(episode_of(tmp_path), lambda k, time: f"{k + 1:06d}")
    assert len(prepared(tmp_path, alignment="index").dataset.sample_ticks("all")) > 30


def test_ticks_with_a_stale_picture_are_left_out_and_counted(tmp_path):
    folder = episode_of(tmp_path)
    for path in sorted((folder / "images" / "View2").iterdir())[10:]:
        path.unlink()  # The second camera stops after two seconds.
    result = prepared(tmp_path)
    dataset = result.dataset
    last_seen = START + 0.01 + 9 / 5
    times = dataset.ticks.time[dataset.sample_ticks("all")]
    # A tick's features are those of its refresh, of the two before too.
    assert last_seen + 2.0 - 0.1 < times.max() < last_seen + 2.0 + 0.3
    assert any("have a picture older than 2 s and are left out" in note for note in dataset.episodes[0].notes)
    assert len(prepared(tmp_path, max_image_age=10.0).dataset.sample_ticks("all")) == 60
    fewer = prepared(tmp_path, max_image_age=0.5).dataset.sample_ticks("all")
    assert 15 < len(fewer) < len(times)


@pytest.mark.parametrize("offset", [3600.0, -3600.0])
def test_a_sensor_by_another_clock_is_a_fault(offset, tmp_path):
    folder = episode_of(tmp_path)
    with np.load(folder / "sensor_data.npz") as stored:
        content = dict(stored)
    content["timestamps"] = content["timestamps"] + offset
    np.savez(folder / "sensor_data.npz", **content)
    side = "after" if offset > 0 else "before"
    assert f"sensor: begins 60.0 min {side} the poses, and no tick sees it" in fault_of(tmp_path)
    assert len(prepared(tmp_path, sensor=False).dataset.sample_ticks("all")) == 60


def test_poses_in_milliseconds_are_a_fault(tmp_path):
    change_pose_times(episode_of(tmp_path), lambda times: 1000 * times)
    assert (
        "robot_states.csv: time 1.7e+12 is no unix time in seconds, it looks like milliseconds"
        in fault_of(tmp_path)
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"robot_hz": 10**40}, "robot_hz is 10000000000000000000… (41 characters), expected a number"),
        ({"robot_hz": 10**309}, "robot_hz is 1000"),
        ({"sensor_hz": 10**40}, "sensor_hz is 1000"),
        ({"robot_states_count": 10**40}, "robot_states_count is 1000"),
        ({"sensor_windows_count": 10**40}, "sensor_windows_count is 1000"),
        ({"segments": [{"name": "a", "start": 10**400, "end": 1}]}, "segments is not a list of"),
        ({"robot_hz": 1e300}, "robot_hz is 1e+300, expected a number"),
        ({"robot_hz": 1e-300}, "robot_hz is 1e-300, but the time stamps say 100 Hz"),
        ({"robot_hz": 1000}, "robot_hz is 1000, but the time stamps say 100 Hz"),
        ({"sensor_hz": 1e300}, "sensor_hz is 1e+300, expected a number"),
        ({"sensor_hz": 1e-9}, "sensor_hz is 1e-09, expected 1 to 1e+06"),
        ({"sensor_hz": 0}, "sensor_hz is 0, expected 1 to 1e+06"),
        ({"sensor_hz": 6}, "sensor_hz is 6, but 650 rows a second were recorded"),
        ({"sensor_hz": 200_000}, "sensor_hz is 200000, but 650 rows a second were recorded"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("alignment", ["timestamp", "index"])
def test_numbers_that_cannot_be_are_faults(changes, told, alignment, tmp_path):
    change_metadata(episode_of(tmp_path, seconds=2.0), **changes)
    assert told in fault_of(tmp_path, alignment=alignment)


@pytest.mark.parametrize("stride", [65, 40, 120])
def test_true_rates_pass_whether_windows_overlap_or_leave_gaps(stride, tmp_path):
    episode_of(tmp_path, window_rows=65, stride_rows=stride)
    assert not prepared(tmp_path).faulty


def test_a_rate_is_compared_with_overlapping_windows(tmp_path):
    change_metadata(episode_of(tmp_path, window_rows=650, stride_rows=117), sensor_hz=6500)
    assert "sensor_hz is 6500, but the time stamps say 650 Hz" in fault_of(tmp_path)


IN_METRES = (1e-3, 1e-3, 1e-3, 1.0, 1.0, 1.0)
IN_RADIANS = (1.0, 1.0, 1.0, *[np.pi / 180] * 3)


def write_poses(folder, factors):
    """An arm that moves at some millimetres a second, 200 mm from its base, and turns by some degrees."""
    times = START + np.arange(601) / 100
    swing = np.sin(np.arange(601) / 40)[:, None]
    poses = np.array([200.0, 10.0, 60.0, 90.0, 5.0, 3.0]) + swing * np.array([5, 3, 8, 4, 2, 6])
    lines = ["recv_timestamp,pose_x,pose_y,pose_z,pose_a,pose_b,pose_r"]
    lines += [
        ",".join(map(repr, row)) for row in np.column_stack([times, poses * np.asarray(factors)]).tolist()
    ]
    (folder / "robot_states.csv").write_text("\n".join(lines) + "\n")


def test_metres_are_asked_for_and_converted(tmp_path):
    folder = episode_of(tmp_path)
    write_poses(folder, (1.0,) * 6)
    sound = prepared(tmp_path).dataset
    expected = np.array(sound.ticks.delta), sound.ticks.pose.copy()
    write_poses(folder, IN_METRES)
    with pytest.raises(
        UserError, match=r"1 of 1 episodes .* as if their positions were metres .*--pose-units m"
    ):
        prepare([str(tmp_path / "s")], tmp_path / "asked", PrepareOptions())
    assert not (tmp_path / "asked").exists()
    converted = prepared(tmp_path, pose_units="m").dataset
    np.testing.assert_allclose(converted.ticks.delta, expected[0], atol=1e-6)
    np.testing.assert_allclose(converted.ticks.pose, expected[1], atol=1e-9)
    kept = prepared(tmp_path, pose_units="mm").dataset
    np.testing.assert_allclose(kept.ticks.delta[:, :3], expected[0][:, :3] / 1000, atol=1e-6)
    assert not (tmp_path / "d" / BUILDING).exists()


def test_radians_are_converted_and_small_angles_are_told(tmp_path):
    folder = episode_of(tmp_path)
    write_poses(folder, (1.0,) * 6)
    result = prepared(tmp_path)
    assert not any("radians" in note for note in result.notes)
    expected = np.array(result.dataset.ticks.delta)
    write_poses(folder, IN_RADIANS)
    result = prepared(tmp_path)
    assert any(
        "angles are taken as degrees and never leave ±3.2; if they are radians" in n for n in result.notes
    )
    result = prepared(tmp_path, angle_units="rad")
    np.testing.assert_allclose(result.dataset.ticks.delta, expected, atol=1e-5)
    assert result.notes == ()
    assert prepared(tmp_path, angle_units="deg").notes == ()


def test_names_that_are_no_text_are_faults(tmp_path):
    folder = episode_of(tmp_path)
    picture = next((folder / "images" / "View1").iterdir())
    bad = bytes(picture.parent) + b"/\xff" + picture.name.encode()
    picture.rename(bad.decode("utf-8", "surrogateescape"))
    assert r"images/View1/\udcff1700000000" in fault_of(tmp_path)
    for path in (folder / "images" / "View1").iterdir():
        path.rename(path.with_name(path.name.replace("\udcff", "")))
    folder.rename(folder.with_name("e\udcff"))
    assert "the name is no UTF-8 text; rename it" in fault_of(tmp_path)


def test_deeply_nested_folders_hold_nothing_for_us(tmp_path):
    folder = episode_of(tmp_path)
    for root in (tmp_path / "s", folder):
        deep = root / "deep"
        deep.mkdir()
        # Made from below: a path of all of them at once is longer than a path may be.
        inner = tmp_path / "inner"
        inner.mkdir()
        for _ in range(1500):
            outer = tmp_path / "outer"
            outer.mkdir()
            inner.rename(outer / "d")
            outer.rename(inner)
        inner.rename(deep / "d")
    try:
        assert len(prepared(tmp_path).dataset.sample_ticks("all")) == 60
    finally:
        # Python's own way of removing folders calls itself for each level, and so would pytest's cleaning.
        subprocess.run(["rm", "-rf", tmp_path / "s"], check=True)
