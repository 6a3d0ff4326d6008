"""Checksums of files and of whole folders, so that a changed byte is noticed before it is used.

A folder's stand in the folder itself, in the format of `sha256sum`: `cd FOLDER && sha256sum -c SHA256SUMS` checks it
too.
"""

import hashlib
import os
import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHECKSUMS_FILE = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def file_digest(path: Path) -> str:
    """Returns the SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Writes the checksum of every file in and below `folder` into the folder."""
    names = sorted(_files(folder))
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda name: file_digest(folder / name), names)
    text = "".join(f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True))
    (folder / CHECKSUMS_FILE).write_text(text)


def find_changes(folder: Path, parts: Collection[str] | None = None) -> list[str]:
    """Compares a folder with its checksums and returns what differs, one phrase per file; [] when all is as written.

    parts: names of sub-folders to look at, beside the files in `folder` itself; all by default.
    """
    try:
        text = (folder / CHECKSUMS_FILE).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        return [f"{CHECKSUMS_FILE} cannot be read ({error})"]
    lines = text.split("\n")[:-1]
    entries = [entry for line in lines if (entry := _LINE.fullmatch(line))]
    if not entries or len(entries) < len(lines) or not text.endswith("\n"):
        return [f"{CHECKSUMS_FILE} has changed"]
    expected = {entry[2]: entry[1] for entry in entries}
    names = [name for name in sorted(expected.keys() | _files(folder)) if _is_in(name, parts)]
    with ThreadPoolExecutor() as pool:
        changes = pool.map(lambda name: _change(folder, name, expected.get(name)), names)
        return [f"{name} {change}" for name, change in zip(names, changes, strict=True) if change]


def _change(folder: Path, name: str, expected: str | None) -> str | None:
    if expected is None:
        return "was not written with it"
    try:
        return None if file_digest(folder / name) == expected else "has changed"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _files(folder: Path) -> set[str]:
    """Names of all files below `folder`; hidden ones are left out, which file systems and browsers add."""
    names = set()
    for directory, _, files in os.walk(folder):
        below = Path(directory).relative_to(folder)
        names.update((below / name).as_posix() for name in files if not name.startswith("."))
    return names - {CHECKSUMS_FILE}


def _is_in(name: str, parts: Collection[str] | None) -> bool:
    part, separator, _ = name.partition("/")
    return parts is None or not separator or part in parts
