"""Writing a file so that it appears complete or not at all, and what was there before is never half gone."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file under a temporary name beside `path`, then renames it.

    write: called with the open binary file.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            write(handle)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8 under a temporary name beside `path`, then renames it."""
    replace_file(path, lambda handle: handle.write(text.encode()))
