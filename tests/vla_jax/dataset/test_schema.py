"""A per-tick column defined here goes through packing, joining, reopening and incremental `prepare`."""

import json

import numpy as np
import pytest

from tests.vla_jax.recordings.recorded_episodes import START, write_data_set, write_windows_episode
from vla_jax.dataset.joining import cut_out
from vla_jax.dataset.options import PrepareOptions
from vla_jax.dataset.packed_dataset import PackedDataset, Ticks
from vla_jax.dataset.preparation import prepare
from vla_jax.dataset.schema import COLUMNS, Column, register_column, registered_columns, unregister_column
from vla_jax.recordings.recording import Stream
from vla_jax.recordings.registry import register_reader, unregister_reader
from vla_jax.recordings.windows import WindowsReader

TORQUE = Column("torque", "float32", (3,), in_batches=True)
PHASE = Column("phase", "int16", fill=-1)


class TorqueReader(WindowsReader):
    """Windows episodes with a file of torques beside."""

    kind = "torques"
    told_by = "torques.npz"

    def recognises(self, names):
        return "torques.npz" in names

    def read(self, episode, options=None, *, with_sensor=True):
        recording = super().read(episode, options, with_sensor=with_sensor)
        with np.load(episode / "torques.npz") as stored:
            recording.streams["torque"] = Stream(stored["times"], stored["values"])
            recording.streams["phase"] = Stream(stored["times"][::4], np.arange(len(stored["times"][::4])))
        return recording


@pytest.fixture
def columns():
    # A folder with torques also looks like a `windows` episode.
    register_reader(TorqueReader(), before="windows")
    register_column(TORQUE)
    register_column(PHASE)
    yield
    unregister_reader("torques")
    for column in registered_columns():
        unregister_column(column.name)


def write_torques(folder, seed):
    write_windows_episode(folder, seed=seed)
    rng = np.random.default_rng(seed)
    # 20 Hz, from 0.33 s on: the first four ticks know none.
    times = START + 0.33 + np.arange(34) / 20
    np.savez(folder / "torques.npz", times=times, values=rng.normal(size=(34, 3)))
    return folder


def expected(folder, ticks):
    with np.load(folder / "torques.npz") as stored:
        newest = np.searchsorted(stored["times"], ticks, side="right") - 1
        values = stored["values"].astype(np.float32)[newest]
    return np.where(newest[:, None] >= 0, values, np.nan), np.where(newest >= 0, newest // 4, -1)


def check(dataset, folders):
    assert dataset.columns == (TORQUE, PHASE)
    for folder, entry in zip(folders, dataset.episodes, strict=True):
        ticks = np.arange(entry.tick_start, entry.tick_stop)
        torque, phase = dataset.ticks.columns["torque"][ticks], dataset.ticks.columns["phase"][ticks]
        assert (torque.dtype, phase.dtype) == (np.float32, np.int16)
        if entry.format == "windows":
            assert np.isnan(torque).all()
            assert (phase == -1).all()
            continue
        wanted_torque, wanted_phase = expected(folder, dataset.ticks.time[ticks])
        assert np.isnan(wanted_torque[:4]).all()
        assert np.isfinite(wanted_torque[4:]).all()
        np.testing.assert_array_equal(torque, wanted_torque)
        np.testing.assert_array_equal(phase, wanted_phase)
        np.testing.assert_array_equal(dataset.batch_columns(ticks[5:7])["torque"], wanted_torque[5:7])
        assert set(dataset.batch_columns(ticks)) == {"torque"}


def test_a_column_goes_through_prepare(columns, tmp_path):
    source, out = tmp_path / "source", tmp_path / "data"
    folders = [write_torques(source / "t" / "a", 0), write_windows_episode(source / "t" / "b", seed=1)]
    check(prepare([str(source)], out, PrepareOptions()).dataset, folders)
    folders.append(write_torques(source / "t" / "c", 2))
    grown = prepare([str(source)], out, PrepareOptions())
    assert grown.num_read == 1
    check(grown.dataset, folders)
    # Whoever opens it need not know the column.
    unregister_column("phase")
    check(PackedDataset.open(out), folders)
    fewer = prepare([str(source)], out, PrepareOptions())
    assert fewer.num_read == 3
    assert fewer.dataset.columns == (TORQUE,)
    assert [path.name for path in fewer.dataset.content.glob("phase*")] == []


def test_a_stream_that_does_not_fit_is_a_fault(columns, tmp_path):
    folder = write_torques(tmp_path / "s" / "t" / "a", 0)
    write_windows_episode(tmp_path / "s" / "t" / "b")
    with np.load(folder / "torques.npz") as stored:
        np.savez(folder / "torques.npz", times=stored["times"], values=stored["values"][:, :2])
    (finding,) = (
        f for f in prepare([str(tmp_path / "s")], tmp_path / "d", PrepareOptions()).findings if f.is_fault
    )
    assert finding.reason == "stream torque: values of shape (34, 2) at 34 times, expected (m, 3)"


def test_impossible_columns_are_refused():
    for column, message in (
        (Column("time", "float32"), "a column 'time' already"),
        (Column("x", "int32"), "int32 has no NaN; say what fills it"),
        (Column("x", "float32", per="image"), "one row per tick"),
        (Column("x", "float32", ("state",)), "columns of known shape"),
        (Column("x", "int64", counts="sensor", fill=-1), "one row per tick"),
    ):
        with pytest.raises(ValueError, match=message):
            register_column(column)
    assert registered_columns() == ()
    with pytest.raises(ValueError, match=r"'\.\./x' is no name for a column"):
        Column("../x", "float32")


def test_a_column_survives_json():
    for column in (*COLUMNS, TORQUE, PHASE, Column("x", "float32", fill=float("nan"))):
        assert Column.from_json(json.loads(json.dumps(column.to_json()))) == column


def test_the_table_says_what_is_on_disk(tmp_path):
    source = write_data_set(tmp_path / "source", 3, seconds=1.0)
    dataset = prepare([str(source)], tmp_path / "data", PrepareOptions()).dataset
    sizes = {"state": 6, "action": 7, "view": 2}
    rows = {"tick": len(dataset.ticks), "instant": len(dataset.records), "episode": 3}
    rows |= {"image": dataset.raw_episodes[-1]["image_stop"], "bin": dataset.array("histogram_start")[-1]}
    for column in COLUMNS:
        shape = (rows[column.per], *(sizes.get(size, size) for size in column.shape))
        assert (dataset.array(column.name).shape, dataset.array(column.name).dtype) == (shape, column.dtype)
    ticks = [column.name for column in COLUMNS if column.per == "tick"]
    assert sorted([*ticks, "columns"]) == sorted(Ticks.__dataclass_fields__)
    others = {"sensor", "image_path", "image_start", "histogram_start"}
    assert {path.stem for path in dataset.content.glob("*.npy")} == {*others, *(c.name for c in COLUMNS)}


def test_an_episode_cut_out_is_what_was_joined(tmp_path):
    source = write_data_set(tmp_path / "source", 3, seconds=1.0)
    whole = prepare([str(source)], tmp_path / "data", PrepareOptions()).dataset
    for number in range(3):
        alone = prepare([whole.episodes[number].path], tmp_path / f"d{number}", PrepareOptions()).dataset
        ours, theirs = cut_out(whole, number), cut_out(alone, 0)
        assert ours.info == theirs.info
        assert set(ours.arrays) == set(theirs.arrays)
        for name, values in ours.arrays.items():
            np.testing.assert_array_equal(values, theirs.arrays[name], err_msg=name)
