"""How much memory a process holds."""

import os
from pathlib import Path


def resident_mb() -> float | None:
    """Returns the resident memory of this process in 10⁶ bytes; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
