import os
import pickle

import numpy as np
import pytest

from tests.vla_jax.recordings.recorded_episodes import START, jpeg, sensor_rows
from vla_jax.dataset.options import EpisodeOptions, PrepareOptions
from vla_jax.dataset.preparation import prepare
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.legacy import LegacyReader, locate_image
from vla_jax.recordings.restricted_pickle import read_pickle

NUM_ACTIONS = 30


def write_legacy_episode(folder, **changes):
    folder.mkdir(parents=True)
    paths = {}
    for view in ("View1_left", "View5"):
        place = folder / view.replace("_", "/")
        place.mkdir(parents=True)
        for k in range(NUM_ACTIONS):
            (place / f"{START + k / 10:.3f}.jpg").write_bytes(jpeg(k))
        # The reference's pickles hold the paths of the machine that wrote them.
        paths[view] = [
            f"/home/lab/data/{folder.name}/{view}/{START + k / 10:.3f}.jpg" for k in range(NUM_ACTIONS)
        ]
    paths["View1_left"][4] = None
    rows = sensor_rows(NUM_ACTIONS).astype(np.float32)
    content = {
        "action": np.random.default_rng(0).normal(0, 0.2, (NUM_ACTIONS, 7)).astype(np.float32),
        "image": paths,
        "sensor_data": {"force": rows[:, 0], "fpi": rows[:, 1:]},
        "instruction": "insert it",
    }
    (folder / "data.pkl").write_bytes(pickle.dumps(content | changes))
    return folder


def pack(folder, out, **options):
    return prepare([str(folder)], out, PrepareOptions(episode=EpisodeOptions(**options))).dataset


def test_actions_pictures_and_sensor_share_their_index(tmp_path):
    folder = write_legacy_episode(tmp_path / "Blue_point" / "recv_all_1")
    packed = pack(folder, tmp_path / "d")
    stored = pickle.loads((folder / "data.pkl").read_bytes())
    np.testing.assert_array_equal(packed.ticks.delta, stored["action"])
    ticks = packed.sample_ticks("all")
    np.testing.assert_array_equal(packed.sensor_windows(ticks)[:, -1, 0] * 64, ticks)
    assert packed.episodes[0].confidence == 1.0
    assert packed.records[0].prompt == "insert it"
    record = packed.records[int(packed.record_index(np.array([7]))[0])]
    assert [image.path.name for image in record.images] == [f"{START + 0.6:.3f}.jpg"] * 2
    # The picture that the recording marks as missing leaves its view out of that instant.
    assert [image.view for image in packed.records[int(packed.ticks.instant[4])].images] == ["View5"]


def test_without_sensor_the_confidence_is_half(tmp_path):
    packed = pack(write_legacy_episode(tmp_path / "t" / "e", sensor_data=None), tmp_path / "d")
    assert packed.episodes[0].confidence == 0.5
    assert not packed.has_sensor(packed.sample_ticks("all")).any()


def test_sensor_file_beside_wins_when_its_shape_fits(tmp_path):
    folder = write_legacy_episode(tmp_path / "t" / "e")
    beside = np.full((NUM_ACTIONS, 1026), 3, np.float32)
    np.save(folder / "sensor_data.npy", beside)
    assert (pack(folder, tmp_path / "d").sensor == 3).all()
    np.save(folder / "sensor_data.npy", beside[:-1])
    assert (pack(folder, tmp_path / "e").sensor[:, 0] * 64 == np.arange(NUM_ACTIONS)).all()


def test_index_alignment_takes_whole_chunks_but_the_last(tmp_path):
    packed = pack(write_legacy_episode(tmp_path / "t" / "e"), tmp_path / "d", alignment="index")
    ticks = packed.sample_ticks("all")
    assert ticks.tolist() == [0, 8]
    np.testing.assert_array_equal(packed.record_index(ticks), packed.ticks.instant[ticks])


def test_pictures_never_come_from_outside_the_episode(tmp_path):
    folder = write_legacy_episode(tmp_path / "t" / "e")
    outside = tmp_path / "secret" / "1.jpg"
    outside.parent.mkdir()
    outside.write_bytes(jpeg(1))
    (folder / "link.jpg").symlink_to(outside)
    for path in (str(outside), "../../secret/1.jpg", "link.jpg", "", "/", "\0"):
        assert locate_image(folder, "View1", path, False) is None
    assert locate_image(folder, "View1", str(outside), True) == str(outside)


def test_missing_pictures_are_counted(tmp_path):
    folder = write_legacy_episode(tmp_path / "t" / "e")
    for path in sorted((folder / "View5").iterdir())[:3]:
        path.unlink()
    assert "3 picture(s) are not in the episode" in LegacyReader().read(folder).faults[0]


class Hostile:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "make",
    [
        lambda marker: Hostile(os.system, f"touch {marker}"),
        lambda marker: Hostile(open, str(marker), "w"),
        lambda marker: Hostile(eval, f"open({str(marker)!r}, 'w')"),
        lambda marker: {"action": Hostile(os.mkdir, str(marker))},
        lambda marker: [np.array([Hostile(os.mkdir, str(marker))], object)],
        lambda marker: Hostile(np.save, str(marker), 1),
    ],
)
def test_nothing_in_a_hostile_pickle_runs(make, protocol, tmp_path):
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(make(tmp_path / "marker"), protocol))
    with pytest.raises(EpisodeError, match=r"data.pkl: damaged or refused pickle"):
        read_pickle(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.pkl"]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (getattr, ("text", "__doc__")),
        (eval, ("1 + 1",)),
        (len, ("text",)),
        (int, ("3",)),
        (str.upper, ("text",)),
    ],
)
def test_not_even_what_gives_a_harmless_value_is_called(function, arguments, protocol, tmp_path):
    """getattr alone would reach everything else."""
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(Hostile(function, *arguments), protocol))
    with pytest.raises(EpisodeError, match="wants to call "):
        read_pickle(path)


def shared(width, depth):
    """A list that holds one list `width` times, and so on: few bytes, width**depth entries."""
    wide = ["x"] * width
    for _ in range(depth - 1):
        wide = [wide] * width
    return wide


@pytest.mark.parametrize("shape", [(1000, 6), (5000, 2), (2, 60)])
def test_a_list_shared_a_billion_times_is_refused_at_once(shape, tmp_path):
    (tmp_path / "data.pkl").write_bytes(pickle.dumps({"image": {"View1": shared(*shape)}}))
    assert (tmp_path / "data.pkl").stat().st_size < 100_000
    with pytest.raises(EpisodeError, match=r"more than 10000000 entries|nested too deeply"):
        read_pickle(tmp_path / "data.pkl")


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_survive_every_protocol(protocol, tmp_path):
    content = {
        "c": np.arange(12, dtype=np.float32).reshape(3, 4),
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "b": np.array([1, 2], ">i4"),
        "e": np.empty((0, 7)),
        "s": np.float64(2.5),
        "l": ["a", None, 3, (1, 2)],
    }
    (tmp_path / "data.pkl").write_bytes(pickle.dumps(content, protocol))
    read = read_pickle(tmp_path / "data.pkl")
    for name in "cfbes":
        np.testing.assert_array_equal(read[name], content[name])
        assert read[name].dtype == content[name].dtype
    assert read["l"] == content["l"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": np.zeros((30, 6), np.float32)}, r"action is \(30, 6\)"),
        ({"action": [1, 2]}, "action is list"),
        ({"action": np.full((30, 7), np.nan)}, "action 0 is not finite"),
        ({"action": np.array([{}])}, "refused pickle"),
        ({"image": [1]}, "image is not a dictionary"),
        ({"image": {"View1": [1]}}, "is not a list of paths"),
        ({"sensor_data": {"force": np.zeros(30)}}, "lacks force or fpi"),
        ({"sensor_data": np.zeros((30, 1025))}, r"sensor_data is \(30, 1025\)"),
        ({"instruction": 7}, "instruction is not a text"),
    ],
)
def test_wrong_content_is_named(changes, message, tmp_path):
    folder = write_legacy_episode(tmp_path / "t" / "e", **changes)
    with pytest.raises(EpisodeError, match=message):
        LegacyReader().read(folder)
