"""What samples see is never from after their tick, and commonly not older than one period of its recording."""

import numpy as np
import pytest

from tests.vla_jax.recordings.recorded_episodes import START, sensor_rows, write_windows_episode
from vla_jax.dataset.options import PrepareOptions
from vla_jax.dataset.preparation import prepare
from vla_jax.reporting.inspection import picture_ages, sensor_ages

TOLERANCE = 2e-5


def record(folder, seed):
    """An episode whose cameras and sensor begin, run, jitter and overlap as chance has it; returns their periods."""
    rng = np.random.default_rng(seed)
    image_hz, window_rows = rng.uniform(2, 30), int(rng.choice([20, 65, 650]))
    write_windows_episode(folder, seed=seed, seconds=4.0, views=(), has_sensor=False)
    write_windows_episode(
        folder.with_name("pictures"), seed=seed, seconds=4.0, image_hz=5.0, has_sensor=False
    )
    for view in ("View1", "View2"):
        pictures = sorted((folder.with_name("pictures") / "images" / view).iterdir())
        times = START + rng.uniform(-0.5, 0.5) + np.arange(int(4 * image_hz)) / image_hz
        times += rng.uniform(-0.2, 0.2, len(times)) / image_hz
        (folder / "images" / view).mkdir(parents=True)
        for k, time in enumerate(times):
            target = folder / "images" / view / f"{time:.6f}.jpg"
            target.write_bytes(pictures[k % len(pictures)].read_bytes())
    stride = int(window_rows * rng.uniform(0.3, 1.0))
    stream = sensor_rows(3200, seed)
    ends = np.arange(window_rows, len(stream), stride)
    windows = stream[ends[:, None] - window_rows + np.arange(window_rows)]
    begin = START + rng.uniform(-0.5, 0.5)
    stamps = begin + ends / 650 + rng.uniform(-0.2, 0.2, len(ends)) * stride / 650 * 0.1
    np.savez(folder / "sensor_data.npz", data=windows, timestamps=stamps)
    metadata = folder / "metadata.json"
    metadata.write_text(
        metadata.read_text().replace('"camera_views": []', '"camera_views": ["View1", "View2"]')
    )
    return 1 / image_hz


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_later_than_its_tick_and_most_is_fresh(seed, tmp_path):
    picture_period = record(tmp_path / "s" / "t" / "e", seed)
    dataset = prepare([str(tmp_path / "s" / "t" / "e")], tmp_path / "d", PrepareOptions()).dataset
    assert dataset.meta.views == ("View1", "View2")
    ticks = dataset.sample_ticks("all")
    assert len(ticks) > 20
    for which in ("newest", "used"):
        ages = picture_ages(dataset, ticks, which)
        assert np.nanmin(ages) >= -TOLERANCE
    newest = picture_ages(dataset, ticks, "newest")
    assert (np.nanmedian(newest, axis=0) <= picture_period + TOLERANCE).all()
    ages = sensor_ages(dataset, ticks)
    assert np.nanmin(ages) >= -TOLERANCE
    # One period of 650 Hz, and what the windows' stamps are off.
    assert np.nanmedian(ages) <= 1 / 650 + 0.02
    # The window itself ends with the row whose time that is.
    with_sensor = ticks[dataset.has_sensor(ticks)]
    rows = dataset.sensor_windows(with_sensor, 1)[:, 0, 0].astype(float) * 64
    taken = dataset.ticks.sensor_time[with_sensor]
    begin = np.median(taken - (rows + 1) / 650)
    np.testing.assert_allclose(taken, begin + (rows + 1) / 650, atol=0.03)


def pictures_at(folder, view, times):
    pictures = sorted((folder / "images" / view).iterdir())
    contents = [path.read_bytes() for path in pictures]
    for path in pictures:
        path.unlink()
    for k, time in enumerate(times):
        (folder / "images" / view / f"{START + time:.6f}.jpg").write_bytes(contents[k % len(contents)])


@pytest.mark.parametrize(
    ("times", "note"),
    [
        (np.arange(3.0, 6.0, 0.2), "View1 begins 3.0 s after the poses; the ticks before do not see it"),
        (
            np.r_[0:1:0.2, 4:6:0.2],
            "View1 has no picture for 3.1 s, 0.8 s into the episode",
        ),
        (np.arange(0.0, 2.0, 0.2), "View1 ends 4.1 s before the poses"),
        (np.arange(0.0, 6.0, 0.2), None),
    ],
)
def test_long_gaps_between_pictures_are_noted(times, note, tmp_path):
    folder = write_windows_episode(tmp_path / "s" / "t" / "e", seconds=6.0)
    pictures_at(folder, "View1", times)
    notes = prepare([str(folder)], tmp_path / "d", PrepareOptions()).dataset.episodes[0].notes
    assert notes[:1] == (() if note is None else (note,))
    assert all("have a picture older than 2 s and are left out" in note for note in notes[1:])


def test_ticks_without_sensor_are_counted(tmp_path):
    folder = write_windows_episode(tmp_path / "s" / "t" / "e", seconds=6.0)
    with np.load(folder / "sensor_data.npz") as stored:
        data, stamps = stored["data"][:20], stored["timestamps"][:20]
    np.savez(folder / "sensor_data.npz", data=data, timestamps=stamps)
    dataset = prepare([str(folder)], tmp_path / "d", PrepareOptions()).dataset
    # It begins a moment after the first tick and ends after 2 s; for one second more the newest row counts.
    assert dataset.episodes[0].notes == ("sensor: 30 of 60 ticks have none within 1 s before them",)
    assert (~dataset.has_sensor(np.arange(60))).sum() == 30
