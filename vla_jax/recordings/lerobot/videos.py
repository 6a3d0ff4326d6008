"""Frames of videos by their times: each file is decoded from front to back, and sought in only where one must.

Whoever asks for the frames of an episode in order gets each from the decoder that stands before it. Threads that ask
for the frames of a few records at once are a little out of order: what was decoded last is kept for them.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.frame import MAX_IMAGE_PIXELS
from vla_jax.recordings.untrusted_files import check_ordinary

MAX_VIDEO_BYTES = 64 << 30
MAX_OPEN_VIDEOS = 24
# Decoded frames that are kept, of all videos together (half-size colour: 1.5 bytes a pixel).
MAX_KEPT_BYTES = 192 << 20
# Further ahead than this, seeking is cheaper than decoding what lies between.
MAX_SKIP_SECONDS = 3.0

_NUMBERS = itertools.count()


class VideoDecoder:
    """One open video. All its methods may be called by several threads."""

    def __init__(self, path: Path) -> None:
        """Opens a video. Raises EpisodeError: it is no MP4 that can be decoded, or absurdly large."""
        import av

        self.path = path
        self.number = next(_NUMBERS)
        self.lock = threading.Lock()
        self._frames: Iterator[Any] | None = None
        self._position = 0.0
        try:
            check_ordinary(path, MAX_VIDEO_BYTES)
            # The format is told, not guessed: a playlist under this name would make FFmpeg open other files.
            self._container = av.open(str(path), format="mp4", options={"protocol_whitelist": "file"})
        except (av.FFmpegError, OSError, ValueError) as error:
            raise EpisodeError(f"{path.name}: cannot be opened as MP4 ({_reason(error)})") from error
        if not self._container.streams.video:
            self._container.close()
            raise EpisodeError(f"{path.name}: has no video (truncated?)")
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        self._stream = stream
        self.height, self.width = stream.height or 0, stream.width or 0
        rate = stream.average_rate
        if not 0 < self.height * self.width <= MAX_IMAGE_PIXELS or not rate or stream.time_base is None:
            self._container.close()
            raise EpisodeError(f"{path.name}: {self.width}x{self.height} pixels at {rate} Hz are impossible")
        self._tolerance = 0.5 / float(rate)
        self._time_base = float(stream.time_base)
        self._start = (stream.start_time or 0) * self._time_base

    def frame(self, seconds: float) -> Any:
        """Returns the decoded frame (`av.VideoFrame`) nearest to a time, counted from the video's first frame.

        Raises:
            EpisodeError: there is none within half a frame's time of it, or it cannot be decoded.
        """
        import av

        if (kept := _KEPT.find(self, seconds)) is not None:
            return kept
        with self.lock:
            # Another thread may have come by it meanwhile.
            if (kept := _KEPT.find(self, seconds)) is not None:
                return kept
            try:
                found = self._decode_to(seconds)
            except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
                self._frames = None
                raise EpisodeError(
                    f"{self.path.name}: cannot be decoded at {seconds:g} s ({_reason(error)})"
                ) from error
        if found is None:
            raise EpisodeError(f"{self.path.name}: has no frame at {seconds:g} s (truncated?)")
        return found

    def _decode_to(self, seconds: float) -> Any:
        late = seconds + self._start - self._tolerance
        if (
            self._frames is None
            or not self._position < late + 2 * self._tolerance < self._position + MAX_SKIP_SECONDS
        ):
            at = int((seconds + self._start + self._tolerance / 2) / self._time_base)
            self._container.seek(max(at, 0), stream=self._stream)
            self._frames = self._container.decode(self._stream)
        for frame in self._frames:
            if frame.pts is None:
                continue
            self._position = frame.pts * self._time_base
            _KEPT.keep(self, self._position - self._start, frame)
            if self._position >= late:
                return frame if self._position <= late + 2 * self._tolerance else None
        self._frames = None
        return None

    def is_near(self, time: float, seconds: float) -> bool:
        """Whether a frame of this time is the one for `seconds`."""
        return abs(time - seconds) <= self._tolerance


class _KeptFrames:
    """The frames decoded last, of all videos together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: OrderedDict[tuple[int, float], Any] = OrderedDict()
        self._by_video: dict[int, list[float]] = {}
        self._size = 0

    def keep(self, video: VideoDecoder, time: float, frame: Any) -> None:
        key, num_bytes = (video.number, time), 3 * frame.width * frame.height // 2
        with self._lock:
            if key in self._frames:
                return
            self._frames[key] = frame
            self._by_video.setdefault(video.number, []).append(time)
            self._size += num_bytes
            while self._size > MAX_KEPT_BYTES and len(self._frames) > 1:
                (owner, oldest), gone = self._frames.popitem(last=False)
                self._by_video[owner].remove(oldest)
                self._size -= 3 * gone.width * gone.height // 2

    def find(self, video: VideoDecoder, seconds: float) -> Any:
        with self._lock:
            for time in self._by_video.get(video.number, ()):
                if video.is_near(time, seconds):
                    return self._frames[video.number, time]
        return None

    def forget(self, video: VideoDecoder) -> None:
        with self._lock:
            for time in self._by_video.pop(video.number, ()):
                gone = self._frames.pop((video.number, time))
                self._size -= 3 * gone.width * gone.height // 2


_KEPT = _KeptFrames()
_OPEN: OrderedDict[tuple[str, int, int], VideoDecoder] = OrderedDict()
_OPEN_LOCK = threading.Lock()


def video_decoder(path: Path) -> VideoDecoder:
    """Returns the decoder of a video, opened once for as long as it is in use and the file stays the same.

    Raises:
        EpisodeError: it is missing or cannot be opened.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise EpisodeError(f"{path.name}: is missing") from error
    key = (str(path), status.st_size, status.st_mtime_ns)
    with _OPEN_LOCK:
        if key not in _OPEN:
            _OPEN[key] = VideoDecoder(path)
        _OPEN.move_to_end(key)
        while len(_OPEN) > MAX_OPEN_VIDEOS:
            # Its file is closed when the last thread that decodes it is done.
            _KEPT.forget(_OPEN.popitem(last=False)[1])
        return _OPEN[key]


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__).splitlines()[0][:160]
