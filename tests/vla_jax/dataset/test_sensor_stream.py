from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vla_jax.recordings.recorded_episodes import sensor_rows
from vla_jax.dataset.sensor_stream import write_stream
from vla_jax.dataset.statistics import merge_moments, sensor_statistics
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.sensor_rows import SensorRecording


@dataclass
class MemoryRows:
    windows: np.ndarray
    block: int = 3
    file: str = "sensor_data.npz"

    num_windows = property(lambda self: len(self.windows))
    window_rows = property(lambda self: self.windows.shape[1])
    channels = property(lambda self: self.windows.shape[2])
    dtype = property(lambda self: self.windows.dtype)

    def blocks(self, rows_per_block):
        for start in range(0, len(self.windows), self.block):
            yield self.windows[start : start + self.block]


def windows_of(stream, starts, size):
    return np.stack([stream[s : s + size] for s in starts])


def join(tmp_path, windows, end_times, dtype=np.float16, block=3):
    recording = SensorRecording(MemoryRows(windows, block), np.asarray(end_times, float), 650.0)
    result = write_stream(recording, tmp_path / "sensor.bin", np.dtype(dtype))
    return result, np.fromfile(tmp_path / "sensor.bin", dtype).reshape(-1, 1026)


STREAM = sensor_rows(900)


@settings(max_examples=25)
@given(st.integers(5, 80), st.integers(2, 60), st.integers(1, 5), st.integers(0, 3))
def test_overlapping_windows_give_back_the_stream(tmp_path_factory, size, stride, block, jitter_seed):
    starts = np.arange(0, 900 - size + 1, min(stride, size))[:12]
    jitter = np.random.default_rng(jitter_seed).uniform(-0.4, 0.4, len(starts)) * min(stride, 5) / 650
    end_times = 5 + (starts + size - 1) / 650 + jitter
    stream, rows = join(
        tmp_path_factory.mktemp("s"), windows_of(STREAM, starts, size), end_times, block=block
    )
    np.testing.assert_array_equal(rows, STREAM[: starts[-1] + size])
    assert stream.segment_starts == (0,)
    np.testing.assert_array_equal(stream.window_ends, starts + size)
    assert (np.diff(stream.row_times) >= 0).all()
    # A row may be given a later time than its own, never an earlier one by more than the stamps are off.
    assert np.abs(stream.row_times - (5 + np.arange(len(rows)) / 650)).max() < 0.02


def test_row_times_end_with_the_window_stamp(tmp_path):
    stream, _ = join(tmp_path, windows_of(STREAM, [0, 65], 65), [10.0, 10.1])
    np.testing.assert_allclose(stream.row_times[[0, 64, 129]], [10 - 64 / 650, 10.0, 10.1])


def test_a_flat_sensor_is_joined_by_its_times(tmp_path):
    windows = np.zeros((6, 65, 1026), np.float16)
    stream, rows = join(tmp_path, windows, 1 + np.arange(6) / 10)
    assert len(rows) == 6 * 65
    assert stream.segment_starts == (0,)
    _, rows = join(tmp_path, windows, 1 + np.arange(6) * 40 / 650)
    assert len(rows) == 65 + 5 * 40


def test_gap_begins_a_new_stretch(tmp_path):
    stream, rows = join(tmp_path, windows_of(STREAM, [0, 65, 400], 65), [1.0, 1.1, 2.0])
    assert len(rows) == 195
    assert stream.segment_starts == (0, 130)
    assert "1 gap" in stream.notes[0]


def test_disagreeing_overlap_is_kept_apart(tmp_path):
    windows = windows_of(STREAM, [0, 30], 65)
    windows[1, 3, 7] += 1
    stream, rows = join(tmp_path, windows, [1.0, 1.0 + 30 / 650])
    assert len(rows) == 130
    assert stream.segment_starts == (0, 65)
    assert "kept apart" in stream.notes[0]


def test_values_that_do_not_fit_are_faults(tmp_path):
    windows = windows_of(STREAM, [0, 65], 65).astype(np.float32)
    windows[1, 2, 3] = 1e5
    with pytest.raises(EpisodeError, match=r"window 1: 100000 does not fit float16"):
        join(tmp_path, windows, [1.0, 1.1])
    assert join(tmp_path, windows, [1.0, 1.1], np.float32)[1][67, 3] == 1e5
    windows[0, 0, 0] = np.nan
    with pytest.raises(EpisodeError, match="window 0: holds nan"):
        join(tmp_path, windows, [1.0, 1.1])


def test_moments_are_those_of_the_joined_rows(tmp_path):
    starts = np.arange(0, 780, 40)
    stream, rows = join(tmp_path, windows_of(STREAM, starts, 65), (starts + 64) / 650)
    found = sensor_statistics(merge_moments([stream.moments]))
    ascan = rows[:, 1:].astype(np.float64)
    assert found["ascan"].count == ascan.size
    np.testing.assert_allclose(found["ascan"].mean, ascan.mean(), rtol=1e-7)
    np.testing.assert_allclose(found["ascan"].std, ascan.std(), rtol=1e-6)
