"""The pictures of a data set: frames of its videos, and encoded images inside its parquet files."""

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.frame import MAX_IMAGE_BYTES, Frame
from vla_jax.recordings.lerobot.paths import file_in
from vla_jax.recordings.lerobot.tables import read_batches
from vla_jax.recordings.lerobot.videos import video_decoder

BATCH_ROWS = 16
KEPT_ROWS = 64
MAX_SKIP_ROWS = 1000
MAX_OPEN_COLUMNS = 16
# Of eight bits a number, each plane by itself.
PLANAR = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray")

_THREAD = threading.local()


class VideoFrame(Frame):
    """A frame of a video. Its locator: FILE@SECONDSs, from the file's first frame; `folder` is the episode's path."""

    kind = "video"

    @property
    def path(self) -> Path:
        """A name to tell it by."""
        return self.folder.parent / (self.locator or "")

    def open(self) -> BinaryIO:
        """Opens the decoded frame as PPM. Raises EpisodeError: it cannot be decoded."""
        return io.BytesIO(_as_ppm(self._decoded()))

    def load(self) -> tuple[bytes, str]:
        """Returns the decoded frame as PPM, and the digest of what the video's codec says it is."""
        frame = self._decoded()
        return _as_ppm(frame), pixel_digest(frame)

    def check(self) -> str:
        """Decodes the frame and returns its digest; its colours are not converted."""
        return pixel_digest(self._decoded())

    def size(self) -> tuple[int, int]:
        """Returns (height, width) of the video; nothing is decoded. Raises EpisodeError."""
        decoder = video_decoder(file_in(self.folder.parent, self._place()[0]))
        return decoder.height, decoder.width

    def _decoded(self) -> Any:
        file, seconds = self._place()
        return video_decoder(file_in(self.folder.parent, file)).frame(seconds)

    def _place(self) -> tuple[str, float]:
        file, _, seconds = (self.locator or "").rpartition("@")
        try:
            return file, float(seconds.removesuffix("s"))
        except ValueError as error:
            raise EpisodeError(f"{self.locator}: is no place in a video") from error


def pixel_digest(frame: Any) -> str:
    """Returns a digest (BLAKE2, hex) of a decoded frame as its codec defines it, bit for bit: before its colours become
    red, green and blue, which each version of a library rounds in its own way.
    """
    digest = hashlib.blake2b(f"{frame.format.name} {frame.width}x{frame.height}".encode(), digest_size=32)
    if frame.format.name in PLANAR:
        for plane in frame.planes:
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
            digest.update(np.ascontiguousarray(rows[: plane.height, : plane.width]).data)
    else:
        digest.update(np.ascontiguousarray(frame.to_ndarray(format="rgb24")).data)
    return digest.hexdigest()


def _as_ppm(frame: Any) -> bytes:
    import av

    if not hasattr(_THREAD, "colours"):
        # It remembers how to convert between frames of the same kind.
        _THREAD.colours = av.video.reformatter.VideoReformatter()
    pixels = _THREAD.colours.reformat(frame, format="rgb24").to_ndarray()
    return b"".join([b"P6\n%d %d\n255\n" % (frame.width, frame.height), np.ascontiguousarray(pixels).data])


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
