"""Files and folders that appear complete or not at all, whatever kills the process that writes them.

Everything is written under a temporary name on the same file system and then renamed. What a killed process leaves
behind bears `TEMPORARY` in front of its name: readers pass it over, and `remove_leftovers` removes it.
"""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from vla_jax.errors import UserError

TEMPORARY = ".tmp-"


_CANNOT_WRITE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG,
    errno.ENOTDIR, errno.EISDIR,
)  # fmt: skip


@contextlib.contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Says in one line that something cannot be written: the disk is full or damaged, the folder is read-only.

    Raises:
        UserError: names the place, and the reason.
    """
    try:
        yield
    except OSError as error:
        reason = why_not_written(error)
        if reason is None:
            raise
        raise UserError(f"cannot write to {place}: {reason}") from error


def why_not_written(error: OSError) -> str | None:
    """Returns why something could not be written, and what to do; None for errors of other kinds."""
    # numpy does not say why it wrote less than it should.
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or (error.errno is None and "written" in str(error)):
        reason = os.strerror(error.errno or errno.ENOSPC)
        return f"{reason}; make room and run the same command again: what is complete is kept"
    if error.errno in _CANNOT_WRITE:
        return f"{error.strerror}{'' if error.filename is None else f' ({error.filename})'}"
    return None


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file beside `path` and gives it that name once its bytes have reached the disk.

    write: called with the open binary file.
    """
    temporary = _temporary_name(path, path.parent)
    with temporary.open("xb") as handle:
        try:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def replace_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, as `replace_file` does."""
    replace_file(path, lambda handle: handle.write(text.encode("utf-8", "backslashreplace")))


@contextlib.contextmanager
def temporary_folder(path: Path, *, within: Path | None = None) -> Iterator[Path]:
    """Makes an empty folder for what is to become `path` by `put_in_place` or `replace_folder`; else it is removed.

    within: where to make it, on the same file system; beside `path` by default.
    """
    folder = _temporary_name(path, within or path.parent)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(folder: Path, path: Path) -> None:
    """Gives a finished folder its name.

    Raises:
        OSError: there is something of that name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(path)


def replace_folder(folder: Path, path: Path) -> None:
    """Gives a finished folder its name in place of the folder that has it, if one does; for a moment there is none."""
    if not path.is_dir():
        put_in_place(folder, path)
        return
    old = _temporary_name(path, path.parent)
    path.rename(old)
    folder.rename(path)
    shutil.rmtree(old)


def remove_folder(path: Path) -> None:
    """Removes a folder so that a process killed meanwhile leaves no half of it under its name."""
    renamed = _temporary_name(path, path.parent)
    path.rename(renamed)
    shutil.rmtree(renamed)


def is_temporary(path: Path) -> bool:
    """Whether this is something unfinished, which nobody but its writer may use."""
    return path.name.startswith(TEMPORARY)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed writers have left in `folder`; only for who knows that nobody writes there now."""
    for path in leftovers(folder):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def leftovers(folder: Path, *, older_than_s: float = 0.0, now: float | None = None) -> list[Path]:
    """Returns the temporary files and folders in `folder` that have not changed for so long.

    now: Unix time, for tests.
    """
    now = time.time() if now is None else now
    found = []
    for path in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(FileNotFoundError):  # a writer at work has renamed it
            if now - path.stat().st_mtime >= older_than_s:
                found.append(path)
    return found


def _temporary_name(path: Path, folder: Path) -> Path:
    return folder / f"{TEMPORARY}{path.name}-{os.getpid()}-{os.urandom(6).hex()}"
