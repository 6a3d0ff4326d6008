"""The one progress bar of all commands: rate and time left, and plain lines where there is no terminal."""

import sys
from typing import Any, TextIO

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0
_LINE = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left{postfix}"
_UP = "\x1b[A"  # Where a bar is drawn below another.


def progress_bar(iterable: Any = None, **options: Any) -> tqdm:
    """Returns a `tqdm` bar on stderr; without a terminal it prints a line every ten seconds instead.

    options: passed to `tqdm` (total, desc, unit, initial, …).
    """
    if sys.stderr.isatty():
        return tqdm(iterable, dynamic_ncols=True, **options)
    return tqdm(
        iterable,
        file=_LineStream(sys.stderr),
        bar_format=_LINE,
        delay=SECONDS_BETWEEN_LINES,
        mininterval=SECONDS_BETWEEN_LINES,
        maxinterval=SECONDS_BETWEEN_LINES,
        **options,
    )


class _LineStream:
    """Turns the carriage returns of a redrawn bar into one line per update."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        text = " ".join(text.replace(_UP, "").split())
        if text:
            self._stream.write(text + "\n")

    def flush(self) -> None:
        self._stream.flush()
