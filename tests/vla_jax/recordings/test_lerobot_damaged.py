# ruff: noqa: E501 (a case is a line)
"""Damaged and hostile LeRobot data sets: one line each, nothing executed, nothing outside the folder read."""

import base64
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.vla_jax.recordings.lerobot_sets import CAMERAS, write_set
from vla_jax.dataset.options import PrepareOptions
from vla_jax.dataset.preparation import prepare
from vla_jax.errors import UserError

DATA = {"v2.1": "data/chunk-000/episode_000001.parquet", "v3.0": "data/chunk-000/file-000.parquet"}
VIDEO = {
    "v2.1": f"videos/chunk-000/{CAMERAS[0]}/episode_000001.mp4",
    "v3.0": f"videos/{CAMERAS[0]}/chunk-000/file-000.mp4",
}
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Sound sets by version, and one with pictures in parquet."""
    root = tmp_path_factory.mktemp("sound")
    for version in ("v2.1", "v3.0"):
        write_set(root / version, version, (6, 5))
    write_set(root / "image", "v3.0", (6, 5), pictures_as="image")
    return root


def refusal(folder: Path, out: Path) -> str:
    """Returns the one line that refuses a set."""
    with pytest.raises(UserError) as error:
        prepare([str(folder)], out, PrepareOptions(strict=True))
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 700
    assert not (out / "dataset.json").exists()
    return message


def edit_info(**changes):
    def edit(folder):
        path = folder / "meta/info.json"
        info = json.loads(path.read_text())
        info.update(changes)
        path.write_text(json.dumps({key: value for key, value in info.items() if value is not ...}))

    return edit


def edit_feature(key, **changes):
    def edit(folder):
        path = folder / "meta/info.json"
        info = json.loads(path.read_text())
        info["features"][key].update(changes)
        info["features"][key] = {
            name: value for name, value in info["features"][key].items() if value is not ...
        }
        path.write_text(json.dumps(info))

    return edit


def edit_table(name, change):
    """Replaces a parquet file by what `change` makes of its table."""

    def edit(folder):
        path = folder / name
        table = pyarrow.parquet.read_table(path)
        path.unlink()
        pyarrow.parquet.write_table(change(table), path)

    return edit


def replaced(column, values):
    """values: an array, or a function of the column's numpy array."""

    def change(table):
        made = values(table[column].to_numpy().copy()) if callable(values) else values
        made = made if isinstance(made, pyarrow.Array) else pyarrow.array(made)
        return table.set_column(table.schema.get_field_index(column), column, made)

    return change


def at(row, value):
    def change(values):
        values[row] = value
        return values

    return change


def edit_lines(name, change):
    def edit(folder):
        path = folder / name
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in change(lines)))

    return edit


def of_line(number, **changes):
    def change(lines):
        lines[number] |= changes
        return lines

    return change


def write(name, content):
    def edit(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content)

    return edit


def remove(name):
    return lambda folder: (folder / name).unlink()


def cut(name, share):
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * share))


def link_outside(name):
    """A link to a sound file, which lies elsewhere."""

    def edit(folder):
        outside = folder.parent / "outside"
        outside.mkdir()
        (folder / name).rename(outside / "file")
        (folder / name).symlink_to(outside / "file")

    return edit


def pipe(name):
    def edit(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return edit


def huge_info(folder):
    with (folder / "meta/info.json").open("r+") as file:
        file.seek(100 << 20)
        file.write(" ")


class _Payload:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/vla-jax-test-executed"),))


def pickled_extension(table):
    """A column whose type is pickled, as old versions of pyarrow would have loaded it."""
    field = table.schema.field("action").with_metadata(
        {
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(_Payload()),
        }
    )
    return table.cast(table.schema.set(table.schema.get_field_index("action"), field))


def pickled_rows(table):
    return replaced("action", pyarrow.array([pickle.dumps(_Payload())] * len(table)))(table)


def ragged(table):
    return replaced("action", pyarrow.array([[0.0] * (13 + i % 2) for i in range(len(table))]))(table)


def with_nan(table):
    rows = np.zeros((len(table), 14), np.float32)
    rows[-1, 3] = np.nan
    return replaced("action", pyarrow.array(rows.tolist()))(table)


def null_pictures(table):
    return replaced(CAMERAS[0], pyarrow.array([{"bytes": None, "path": "/etc/passwd"}] * len(table)))(table)


def pickled_pictures(table):
    made = [{"bytes": pickle.dumps(_Payload()), "path": "x.png"}] * len(table)
    return replaced(CAMERAS[0], pyarrow.array(made))(table)


def swapped(column):
    return lambda table: replaced(column, np.roll(table[column].to_numpy(), 1))(table)


BOTH = {
    "info is gone": (remove("meta/info.json"), "holds no episodes"),
    "info is empty": (write("meta/info.json", b""), "holds no episodes"),
    "info is no JSON": (write("meta/info.json", b'{"codebase_version": '), "info.json: not valid JSON"),
    "info is a list": (write("meta/info.json", b'["codebase_version"]'), "holds list, not an object"),
    "info is no text": (write("meta/info.json", b'{"codebase_version": \xff}'), "info.json: is not text"),
    "info is deep": (write("meta/info.json", b'{"codebase_version":' + b"[" * 100_000), "not valid JSON"),
    "info of 100 MB": (huge_info, "info.json: 104857601 bytes are too many"),
    "another version": (edit_info(codebase_version="v1.6"), "is of version 'v1.6'"),
    "a version that is no text": (edit_info(codebase_version=3), "is of version '3'"),
    "no rate": (edit_info(fps=...), "fps is None"),
    "rate of 0": (edit_info(fps=0), "fps is 0"),
    "rate that is a text": (edit_info(fps="fast"), "fps is fast"),
    "rate that is not finite": (edit_info(fps=float("nan")), "fps is nan"),
    "no features": (edit_info(features=...), "features are missing"),
    "features in a list": (edit_info(features=[1]), "features are missing"),
    "a feature that is none": (edit_info(features={"action": 3}), "feature action: has no dtype"),
    "a feature without type": (edit_feature("action", dtype=...), "feature action: has no dtype"),
    "a negative shape": (edit_feature("action", shape=[-14]), "feature action: has the shape [-14]"),
    "an empty shape": (edit_feature("action", shape=[0]), "feature action: has the shape [0]"),
    "an absurd shape": (edit_feature("action", shape=[1 << 40, 1 << 40]), "absurdly large"),
    "a shape that is a text": (edit_feature("action", shape="14"), "feature action: has the shape 14"),
    "a shape of six": (edit_feature("action", shape=[1] * 6), "absurdly large"),
    "another shape than the file's": (edit_feature("action", shape=[7]), "has 14 numbers in a row, meta/info.json says 7"),
    "no actions": (edit_info(features={"a": {"dtype": "float32", "shape": [1]}}), "has no feature action"),
    "wrong number of episodes": (edit_info(total_episodes=3), "counts 3 episodes, 2 are described"),
    "a number of episodes that is none": (edit_info(total_episodes=[]), "counts [] episodes"),
    "a path that goes up": (edit_info(data_path="../../etc/passwd"), "out of the data set's folder"),
    "a path from the root": (edit_info(data_path="/etc/passwd"), "out of the data set's folder"),
    "a path with a backslash": (edit_info(data_path="data\\..\\x"), "out of the data set's folder"),
    "a path that asks for attributes": (edit_info(data_path="{episode_index.__class__}"), "is no template"),
    "a path of any width": (edit_info(data_path="{episode_index:0999999999d}{file_index:0999999999d}"), "is no template"),
    "a path of something else": (edit_info(data_path="{secret}"), "asks for 'secret'"),
    "no path": (edit_info(data_path=...), "data_path is no text"),
    "a video path that goes up": (edit_info(video_path="videos/../../x.mp4"), "out of the data set's folder"),
    "a camera that goes up": (edit_info(features={"../x": {"dtype": "video", "shape": [1]}}), "../x"),
}  # fmt: skip
V2 = {
    "chunks of none": (edit_info(chunks_size=0), "chunks_size is 0"),
    "no episodes": (remove("meta/episodes.jsonl"), "meta/episodes.jsonl: is missing"),
    "empty episodes": (write("meta/episodes.jsonl", b""), "counts 2 episodes, 0 are described"),
    "episodes that are no JSON": (write("meta/episodes.jsonl", b"{"), "is not made of JSON lines"),
    "an episode that is none": (write("meta/episodes.jsonl", b"[]\n"), "line 1 is no object"),
    "a negative episode": (edit_lines("meta/episodes.jsonl", of_line(0, episode_index=-1)), "episode_index is -1"),
    "an episode twice": (edit_lines("meta/episodes.jsonl", of_line(1, episode_index=0)), "episode 0 is described twice"),
    "an episode without rows": (edit_lines("meta/episodes.jsonl", of_line(1, length=0)), "length is 0"),
    "an episode that is too long": (edit_lines("meta/episodes.jsonl", of_line(1, length=9)), "has 5 rows, expected 9"),
    "a length that is no number": (edit_lines("meta/episodes.jsonl", of_line(1, length="6")), "length is 6, expected"),
    "tasks that are none": (edit_lines("meta/episodes.jsonl", of_line(1, tasks=[3])), "no list of texts"),
    "no tasks": (remove("meta/tasks.jsonl"), "meta/tasks.jsonl: is missing"),
    "a task that is no text": (edit_lines("meta/tasks.jsonl", of_line(0, task=3)), "a task is no text"),
    "an empty task": (edit_lines("meta/tasks.jsonl", of_line(0, task=" ")), "task 0 is an empty text"),
}  # fmt: skip
V3 = {
    "no episodes": (remove(EPISODES), "meta/episodes: holds no parquet files"),
    "episodes that are no parquet": (write(EPISODES, b"PAR1"), "is no readable parquet file"),
    "no lengths": (edit_table(EPISODES, lambda table: table.drop_columns(["length"])), "length is None"),
    "a length that is not from there to there": (edit_table(EPISODES, replaced("length", [6, 6])), "episode 1 has 6 rows"),
    "an episode twice": (edit_table(EPISODES, replaced("episode_index", [1, 1])), "episode 1 is described twice"),
    "a chunk that is missing": (edit_table(EPISODES, replaced("data/chunk_index", [0, 7])), "chunk-007/file-000.parquet: is missing"),
    "half a chunk": (edit_table(EPISODES, replaced("data/chunk_index", [0, 0.5])), "expected a whole number"),
    "rows beyond the file": (edit_table(EPISODES, lambda t: replaced("dataset_to_index", [6, 16])(replaced("dataset_from_index", [0, 11])(t))), "expected 16 at least"),
    "a video that begins at no time": (edit_table(EPISODES, replaced(f"videos/{CAMERAS[0]}/from_timestamp", [0.0, np.nan])), "from_timestamp is nan"),
    "a video that begins too late": (edit_table(EPISODES, replaced(f"videos/{CAMERAS[0]}/from_timestamp", [0.0, 99.0])), "has no frame at 99 s"),
    "no tasks": (remove("meta/tasks.parquet"), "meta/tasks.parquet: is missing"),
    "tasks that are no texts": (edit_table("meta/tasks.parquet", lambda table: table.select(["task_index"])), "no column of texts"),
    "a task that is not described": (edit_table("meta/tasks.parquet", lambda table: table.slice(0, 1)), "task 1 is not described"),
}  # fmt: skip


def rows(version):
    """Damage to the rows and videos of episode 1, which begins in row 6 of v3.0's file, row 0 of v2.1's."""
    data, video, first = DATA[version], VIDEO[version], 6 if version == "v3.0" else 0
    name = Path(data).name
    return {
        "no rows": (remove(data), f"{name}: is missing"),
        "rows cut off": (cut(data, 0.5), f"{name}: is no readable parquet file"),
        "rows in a pipe": (pipe(data), f"{name}: is no ordinary file"),
        "rows behind a link": (link_outside(data), f"{data}: is a link that leads out"),
        "too few rows": (edit_table(data, lambda table: table.slice(0, len(table) - 1)), "(truncated?)"),
        "a column is missing": (edit_table(data, lambda table: table.drop_columns(["action"])), "lacks the column(s) action"),
        "empty actions": (edit_table(data, replaced("action", pyarrow.nulls(first + 5, pyarrow.list_(pyarrow.float32())))), "has empty values"),
        "actions in words": (edit_table(data, replaced("action", ["up"] * (first + 5))), "holds string, expected numbers"),
        "pickled actions": (edit_table(data, pickled_rows), "holds binary, expected numbers"),
        "ragged actions": (edit_table(data, ragged), "its rows have different lengths"),
        "an action that is no number": (edit_table(data, with_nan), "expected finite numbers"),
        "a row of another episode": (edit_table(data, replaced("episode_index", at(-1, 0))), "is of episode 0, expected 1"),
        "an index twice": (edit_table(data, replaced("index", at(-1, 9))), "index is 9"),
        "a frame twice": (edit_table(data, replaced("frame_index", at(-1, 3))), "frame_index is 3"),
        "time goes back": (edit_table(data, replaced("timestamp", at(-1, 0.0))), "times must ascend"),
        "time is not finite": (edit_table(data, replaced("timestamp", at(-1, np.inf))), "time stamp 4 is inf"),
        "rows in another order": (edit_table(data, swapped("index")), "index is"),
        "no video": (remove(video), f"{video}: is missing"),
        "a video cut off": (cut(video, 0.6), "has no video (truncated?)"),
        "an empty video": (write(video, b""), "cannot be opened as MP4"),
        "a video that names other files": (write(video, b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"), "cannot be opened as MP4"),
        "a video that is a picture": (write(video, b"\x89PNG\r\n\x1a\n" + bytes(64)), "cannot be opened as MP4"),
        "a video in a pipe": (pipe(video), "is no ordinary file"),
        "a video behind a link": (link_outside(video), "is a link that leads out"),
    }  # fmt: skip


CASES = [
    (version, name, *case)
    for version, own in (("v2.1", V2), ("v3.0", V3))
    for name, case in (BOTH | own | rows(version)).items()
]


@pytest.mark.parametrize(
    ("version", "name", "damage", "message"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_damage_is_one_line(sound, tmp_path, version, name, damage, message):
    folder = tmp_path / "set"
    shutil.copytree(sound / version, folder)
    damage(folder)
    assert message in refusal(folder, tmp_path / "data")
    assert not Path("/tmp/vla-jax-test-executed").exists()


def test_there_are_cases_enough():
    assert len({(version, name) for version, name, *_ in CASES}) == len(CASES) >= 60


def test_a_pickled_type_is_not_loaded(sound, tmp_path):
    """The values are sound, so that the set is: its type's name and pickle are passed over."""
    folder = tmp_path / "set"
    shutil.copytree(sound / "v3.0", folder)
    edit_table(DATA["v3.0"], pickled_extension)(folder)
    (stored,) = pyarrow.parquet.read_metadata(folder / DATA["v3.0"]).metadata.values()
    assert b"arrow.py_extension_type" in base64.b64decode(stored)
    assert len(prepare([str(folder)], tmp_path / "data", PrepareOptions()).dataset.episodes) == 2
    assert not Path("/tmp/vla-jax-test-executed").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [(null_pictures, "has no picture's bytes"), (pickled_pictures, "is not a JPEG or PNG picture")],
)
def test_pictures_in_parquet_are_not_trusted(sound, tmp_path, change, message):
    folder = tmp_path / "set"
    shutil.copytree(sound / "image", folder)
    edit_table(DATA["v3.0"], change)(folder)
    assert message in refusal(folder, tmp_path / "data")
    assert not Path("/tmp/vla-jax-test-executed").exists()


def test_one_faulty_episode_leaves_the_others(sound, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(sound / "v2.1", folder)
    cut(VIDEO["v2.1"], 0.6)(folder)
    result = prepare([str(folder)], tmp_path / "data", PrepareOptions())
    assert [entry.name for entry in result.dataset.episodes] == ["episode_000000"]
    assert result.faulty == [str(folder / "episode_000001")]


def test_export_says_what_has_become_of_a_video(sound, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(sound / "v3.0", folder)
    dataset = prepare([str(folder)], tmp_path / "data", PrepareOptions()).dataset
    (folder / VIDEO["v3.0"]).unlink()
    with pytest.raises(OSError, match="is missing"):
        dataset.records[0].images[0].read()
    with pytest.raises(OSError, match="is missing"):
        dataset.records[0].images[0].size()
