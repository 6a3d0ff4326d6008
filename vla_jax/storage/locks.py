"""Folders that one process writes at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vla_jax.errors import UserError

LOCK_FILE = ".lock"


@contextlib.contextmanager
def locked(folder: Path, *, busy: str) -> Iterator[None]:
    """Makes a folder and holds it against other processes; the lock ends with the process, however it ends.

    Afterwards the folder is removed again if it is empty.

    busy: what to say when another process holds it.

    Raises:
        UserError: another process holds it, or it cannot be made or locked.
    """
    try:
        handle = _lock(folder)
    except BlockingIOError as error:
        raise UserError(busy) from error
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    with handle:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (folder / LOCK_FILE).unlink()
                folder.rmdir()


def _lock(folder: Path) -> BinaryIO:
    """Returns the open lock file; a file and not the folder itself, for network file systems lock files only."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / LOCK_FILE).open("ab")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle.fileno()), os.stat(folder / LOCK_FILE)):
                return handle
        except FileNotFoundError:
            # Its last holder has removed it between our opening and locking it.
            pass
        except BaseException:
            handle.close()
            raise
        handle.close()
