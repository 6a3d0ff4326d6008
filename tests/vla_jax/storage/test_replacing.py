"""Files and folders appear whole or not at all; processes are killed for real."""

import errno
import os
import pickle
import random
import stat
import time

import pytest

from tests.vla_jax.storage.processes import kill, start_python, wait_for
from vla_jax.errors import UserError
from vla_jax.storage import replacing
from vla_jax.storage.replacing import (
    TEMPORARY,
    is_temporary,
    leftovers,
    put_in_place,
    remove_folder,
    remove_leftovers,
    replace_file,
    replace_folder,
    replace_text,
    temporary_folder,
    writing_to,
)

# Replaces a folder of 40 equal files by the next one for ever.
REPLACE_FOLDERS = """
import itertools, sys
from pathlib import Path
from vla_jax.storage.replacing import replace_folder, temporary_folder
path = Path(sys.argv[1])
for number in itertools.count():
    with temporary_folder(path) as folder:
        for name in range(40):
            (folder / str(name)).write_text(str(number))
        replace_folder(folder, path)
"""

REPLACE_FILE = """
import itertools, sys
from pathlib import Path
from vla_jax.storage.replacing import replace_file
def write(handle):
    for _ in range(200):
        handle.write(number)
        handle.flush()
for number in itertools.cycle([b"1" * 50, b"2" * 50]):
    replace_file(Path(sys.argv[1]), write)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("one", "zwei ü"):
        replace_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert names(tmp_path) == ["a.txt"]


def test_the_permissions_are_the_users_usual_ones(tmp_path):
    before = os.umask(0o027)
    try:
        replace_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    replace_text(path, "old")

    def write(handle):
        handle.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_readers_see_whole_files_while_a_process_writes_and_after_it_is_killed(tmp_path):
    path = tmp_path / "a"
    process = start_python(REPLACE_FILE, path)
    wait_for(path.exists, process)
    for _ in range(200):
        content = path.read_bytes()
        assert len(content) == 10_000
        assert len(set(content)) == 1
    kill(process)
    assert len(path.read_bytes()) == 10_000
    assert all(name == "a" or name.startswith(TEMPORARY) for name in names(tmp_path))


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "deep" / "data"
    for number in (1, 2):
        with temporary_folder(path) as folder:
            (folder / f"{number}.txt").write_text("x")
            replace_folder(folder, path)
        assert names(path) == [f"{number}.txt"]
    assert names(path.parent) == ["data"]


def test_what_is_there_is_not_replaced_unasked(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old").write_text("x")
    (tmp_path / "file").write_text("in the way")
    for name, put in (("data", put_in_place), ("file", put_in_place), ("file", replace_folder)):
        with temporary_folder(tmp_path / name) as folder:
            (folder / "new").write_text("x")
            with pytest.raises(OSError, match=name):
                put(folder, tmp_path / name)
    assert names(tmp_path / "data") == ["old"]
    assert (tmp_path / "file").read_text() == "in the way"
    assert names(tmp_path) == ["data", "file"]


def test_a_folder_may_be_made_elsewhere_and_is_removed_when_it_is_not_wanted(tmp_path):
    path = tmp_path / "data"
    with temporary_folder(path, within=tmp_path / "staging") as folder:
        assert folder.parent == tmp_path / "staging"
        assert is_temporary(folder)
        (folder / "file").write_text("x")
    assert names(tmp_path / "staging") == []
    assert not path.exists()


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_process_leaves_a_whole_folder_or_none(tmp_path, seed):
    path = tmp_path / "data"
    process = start_python(REPLACE_FOLDERS, path)
    wait_for(path.exists, process)
    time.sleep(random.Random(seed).uniform(0.0, 0.1))
    kill(process)
    # Between the old folder and the new one there may be none; never a half one.
    if path.exists():
        assert len(names(path)) == 40
        assert len({file.read_text() for file in path.iterdir()}) == 1
    assert all(name == "data" or name.startswith(TEMPORARY) for name in names(tmp_path))
    remove_leftovers(tmp_path)
    assert names(tmp_path) in ([], ["data"])


def test_a_removed_folder_goes_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "data"
    (path / "below").mkdir(parents=True)
    seen = []
    remove = replacing.shutil.rmtree

    def noting(folder, **options):
        seen.append((path.exists(), is_temporary(folder)))
        remove(folder, **options)

    monkeypatch.setattr(replacing.shutil, "rmtree", noting)
    remove_folder(path)
    assert seen == [(False, True)]
    assert names(tmp_path) == []


def test_leftovers_are_told_by_their_name_and_age(tmp_path):
    (tmp_path / "kept").mkdir()
    old, new = tmp_path / f"{TEMPORARY}old", tmp_path / f"{TEMPORARY}new"
    old.write_text("x")
    new.mkdir()
    os.utime(old, (1000.0, 1000.0))
    os.utime(new, (2000.0, 2000.0))
    assert leftovers(tmp_path, older_than_s=500.0, now=2100.0) == [old]
    assert sorted(leftovers(tmp_path)) == [new, old]
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["kept"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "No space left on device; make room and run the same",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            "Disk quota exceeded; make room and run the same command",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), r"Read-only file system \(/a/b\)"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), r"Permission denied \(/a/b\)"),
        # What numpy says of a full disk.
        (OSError("1000 requested and 12 written"), "No space left on device"),
    ],
)
def test_why_something_cannot_be_written_is_one_line(error, told, tmp_path):
    # As it comes from a worker's process.
    error = pickle.loads(pickle.dumps(error))
    with pytest.raises(UserError, match=rf"^cannot write to .*place: {told}"), writing_to(tmp_path / "place"):
        raise error


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "No such file"), OSError("something else")]
)
def test_other_errors_pass(error, tmp_path):
    with pytest.raises(OSError) as caught, writing_to(tmp_path):
        raise error
    assert caught.value is error


def test_a_text_that_is_none_is_written_with_escapes(tmp_path):
    replace_text(tmp_path / "page", "name \udcff é")
    assert (tmp_path / "page").read_bytes() == b"name \\udcff \xc3\xa9"
