"""One process at a time, with real processes."""

import pytest

from tests.vla_jax.storage.processes import kill, start_python, wait_for
from vla_jax.errors import UserError
from vla_jax.storage.locks import LOCK_FILE, locked

HOLD = """
import sys, time
from pathlib import Path
from vla_jax.storage.locks import locked
folder = Path(sys.argv[1])
with locked(folder, busy="busy"):
    (folder / "held").touch()
    time.sleep(60)
"""

COUNT = """
import sys
from pathlib import Path
from vla_jax.errors import UserError
from vla_jax.storage.locks import locked
# Makes, locks and removes the folder all the time; a second holder would find the mark of the first.
folder, mark, done = Path(sys.argv[1]), Path(sys.argv[2]), 0
mark.with_name(sys.argv[3]).touch()
while not mark.with_name("go").exists():
    pass
while done < 400:
    try:
        with locked(folder, busy="busy"):
            mark.touch(exist_ok=False)
            mark.unlink()
            done += 1
    except UserError:
        pass
print(done)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    folder = tmp_path / "run"
    process = start_python(HOLD, folder)
    wait_for((folder / "held").exists, process)
    with (
        pytest.raises(UserError, match=r"^somebody else is here$"),
        locked(folder, busy="somebody else is here"),
    ):
        pytest.fail("two processes hold one lock")
    assert (folder / "held").exists()
    kill(process)
    with locked(folder, busy="somebody else is here"):
        pass
    assert (folder / "held").exists()


def test_a_folder_without_content_is_removed_and_one_with_content_stays(tmp_path):
    with locked(tmp_path / "deep" / "empty", busy="busy"):
        assert (tmp_path / "deep" / "empty" / LOCK_FILE).exists()
    assert not (tmp_path / "deep" / "empty").exists()
    with locked(tmp_path / "full", busy="busy"):
        (tmp_path / "full" / "file").write_text("x")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


def test_processes_that_make_and_remove_one_folder_never_hold_it_together(tmp_path):
    processes = [start_python(COUNT, tmp_path / "run", tmp_path / "mark", name) for name in "abc"]
    for name, process in zip("abc", processes, strict=True):
        wait_for((tmp_path / name).exists, process)
    (tmp_path / "go").touch()
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert output.strip() == "400", errors


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match=r"cannot write to .*file/run: "),
        locked(tmp_path / "file" / "run", busy=""),
    ):
        pytest.fail("locked nothing")
