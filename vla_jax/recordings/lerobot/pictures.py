"""The pictures of a data set: frames of its videos, and encoded images inside its parquet files."""

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.frame import MAX_IMAGE_BYTES, Frame
from vla_jax.recordings.lerobot.paths import file_in
from vla_jax.recordings.lerobot.tables import read_batches
from vla_jax.recordings.lerobot.videos import video_decoder

BATCH_ROWS = 16
KEPT_ROWS = 64
MAX_SKIP_ROWS = 1000
MAX_OPEN_COLUMNS = 16


class VideoFrame(Frame):
    """A frame of a video. Its locator: FILE@SECONDSs, from the file's first frame; `folder` is the episode's path."""

    kind = "video"

    @property
    def path(self) -> Path:
        """A name to tell it by."""
        return self.folder.parent / (self.locator or "")

    def open(self) -> BinaryIO:
        """Opens the decoded frame as PPM. Raises EpisodeError: it cannot be decoded."""
        file, seconds = self._place()
        frame = video_decoder(file_in(self.folder.parent, file)).frame(seconds)
        pixels = frame.to_ndarray(format="rgb24")
        return io.BytesIO(b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes())

    def size(self) -> tuple[int, int]:
        """Returns (height, width) of the video; nothing is decoded. Raises EpisodeError."""
        decoder = video_decoder(file_in(self.folder.parent, self._place()[0]))
        return decoder.height, decoder.width

    def _place(self) -> tuple[str, float]:
        file, _, seconds = (self.locator or "").rpartition("@")
        try:
            return file, float(seconds.removesuffix("s"))
        except ValueError as error:
            raise EpisodeError(f"{self.locator}: is no place in a video") from error


class StoredPicture(Frame):
    """An encoded image in a parquet file. Its locator: FILE@COLUMN@ROW; `folder` is the episode's path."""

    kind = "message"

    @property
    def path(self) -> Path:
        """A name to tell it by."""
        return self.folder.parent / (self.locator or "")

    def open(self) -> BinaryIO:
        """Opens the stored image. Raises EpisodeError: the row has none, or the file is damaged."""
        file, column, row = (self.locator or "").rsplit("@", 2)
        data = _picture_column(file_in(self.folder.parent, file), column).image(int(row))
        if data is None:
            raise EpisodeError(f"{file}: row {row} of {column} has no picture's bytes")
        if len(data) > MAX_IMAGE_BYTES:
            raise EpisodeError(f"{file}: row {row} of {column} has {len(data)} bytes, too many for a picture")
        return io.BytesIO(data)


class _PictureColumn:
    """Reads the images of a column from front to back; goes back to a row group's beginning only where it must."""

    def __init__(self, path: Path, column: str) -> None:
        self.path, self.column = path, column
        self.lock = threading.Lock()
        self._pieces: Iterator[Any] = iter(())
        self._next: int | None = None
        self._kept: OrderedDict[int, bytes | None] = OrderedDict()

    def image(self, row: int) -> bytes | None:
        """Returns the bytes in a row, None where there are none. Raises EpisodeError."""
        with self.lock:
            if row in self._kept:
                return self._kept[row]
            if self._next is None or not self._next <= row < self._next + MAX_SKIP_ROWS:
                self._pieces = read_batches(self.path, self.column, row, 1 << 62, BATCH_ROWS)
                self._next = row
            for piece in self._pieces:
                for value in piece.to_pylist():
                    data = value.get("bytes") if isinstance(value, dict) else None
                    self._kept[self._next] = data if isinstance(data, bytes) else None
                    self._next += 1
                while len(self._kept) > KEPT_ROWS:
                    self._kept.popitem(last=False)
                if row < self._next:
                    return self._kept[row]
            self._next = None
        raise EpisodeError(f"{self.path.name}: has no row {row} (truncated?)")


_OPEN: OrderedDict[tuple[str, str, int], _PictureColumn] = OrderedDict()
_OPEN_LOCK = threading.Lock()


def _picture_column(path: Path, column: str) -> _PictureColumn:
    key = (str(path), column, path.stat().st_mtime_ns)
    with _OPEN_LOCK:
        if key not in _OPEN:
            _OPEN[key] = _PictureColumn(path, column)
        _OPEN.move_to_end(key)
        while len(_OPEN) > MAX_OPEN_COLUMNS:
            _OPEN.popitem(last=False)
        return _OPEN[key]
