"""Digests of backbones and adapters by content, computed once and remembered.

Hashing the seven gigabytes of a 3B model takes several seconds, so the digest of each file is kept in the user's
cache directory under its path, size and modification time.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from vla_jax.storage.checksums import file_digest
from vla_jax.storage.replacing import replace_text

# A file changed within this time may change again without a new time stamp, so it is not remembered yet.
_SETTLED_SECONDS = 2.0


def content_digest(files: Iterable[Path]) -> str:
    """Returns the hex digest of the names and contents of files; their directory plays no part."""
    memory = _read_memory()
    known = dict(memory)
    digests = [
        (path.name, _remembered_digest(path, memory)) for path in sorted(files, key=lambda path: path.name)
    ]
    if memory != known:
        _write_memory(memory)
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _remembered_digest(path: Path, memory: dict[str, str]) -> str:
    status = path.stat()
    identity = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    if identity not in memory:
        digest = file_digest(path)
        if time.time() - status.st_mtime < _SETTLED_SECONDS:
            return digest
        memory[identity] = digest
    return memory[identity]


def _memory_path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    # The name that older versions gave it: seven gigabytes are not hashed anew for a better one.
    return Path(base) / "vla-jax" / "fingerprints.json"


def _read_memory() -> dict[str, str]:
    try:
        memory = json.loads(_memory_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Nothing remembered, or not readably: hash anew.
        return {}
    return memory if isinstance(memory, dict) else {}


def _write_memory(memory: dict[str, str]) -> None:
    path = _memory_path()
    # Without a writable home the digests are computed each time.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(memory, indent=1))
