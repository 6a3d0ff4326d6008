"""A recorded picture, wherever its bytes lie: a file, a frame of a video, a message of a log."""

import io
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal

import numpy as np
from jaxtyping import Float

from feature_cache.keys import image_digest
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.untrusted_files import check_name, check_ordinary, check_times

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_IMAGE_BYTES = 256 << 20
MAX_IMAGE_PIXELS = 50_000_000


@dataclass(frozen=True)
class Frame:
    """One picture of a view: a file in the episode's folder. Readers derive a class where theirs are none.

    folder: the episode. locator: by which its reader finds the picture again; a data set stores it. A file's is its
    path relative to the folder. None: the recording itself marks the picture as missing.
    time: when it was taken, unix seconds.
    """

    folder: Path
    locator: str | None
    time: float

    kind: ClassVar[Literal["file", "video", "message"]] = "file"

    @property
    def path(self) -> Path:
        """Where it lies; a name to tell it by where it is no file of its own."""
        return self.folder / (self.locator or "")

    def open(self) -> BinaryIO:
        """Opens the picture as an encoded image: JPEG or PNG, or PPM where a reader has decoded it, which keeps the
        digest of its bytes free from an encoder's versions.

        Raises:
            EpisodeError: it is no ordinary file, is too large, or cannot be made out.
            OSError: it cannot be read.
        """
        check_ordinary(self.path, MAX_IMAGE_BYTES)
        return self.path.open("rb")

    def read(self) -> bytes:
        """Returns the bytes of the encoded image. Raises as `open` does."""
        with self.open() as handle:
            return handle.read()

    def load(self) -> tuple[bytes, str]:
        """Returns the encoded image and the digest of its content: by default of these bytes. Raises as `open` does."""
        data = self.read()
        return data, image_digest(data)

    def check(self) -> str:
        """Reads the picture and decodes it to its end; nothing less finds a truncated one. Returns its digest.

        A JPEG is decoded at an eighth of its size, without colour: its coded data is read whole, which is where damage
        shows, and what is left out is arithmetic that cannot fail.

        Raises:
            EpisodeError: it cannot be read or decoded; names the picture.
            OSError: it cannot be read.
        """
        data, digest = self.load()
        check_picture(
            str(self.locator), data, ("JPEG", "PNG") if self.kind == "file" else ("JPEG", "PNG", "PPM")
        )
        return digest

    def size(self) -> tuple[int, int]:
        """Returns (height, width), by the head of the encoded image. Raises as `open` does."""
        from PIL import Image, UnidentifiedImageError

        try:
            with self.open() as handle, Image.open(handle) as image:
                return image.height, image.width
        except (UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise EpisodeError(f"{self.locator}: is no picture ({type(error).__name__})") from error


def frame_times(frames: Sequence[Frame]) -> Float[np.ndarray, " m"]:
    """Returns when the pictures of a view were taken, unix seconds."""
    return np.array([frame.time for frame in frames], np.float64)


def frames_in(folder: Path, below: str) -> tuple[Frame, ...]:
    """Lists the picture files of `folder / below` by the time at the end of their names; () if there are none.

    Raises:
        EpisodeError: a name does not end in a time, or two end in the same.
    """
    names = [entry.name for entry in (folder / below).iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES]
    for name in names:
        check_name(f"{below}/{name}")
    stamped = sorted((time_in_name(f"{below}/{name}"), f"{below}/{name}") for name in names)
    check_times(np.array([time for time, _ in stamped]), f"{below} (times in the file names)")
    return tuple(Frame(folder, path, time) for time, path in stamped)


def time_in_name(name: str) -> float:
    """Returns the unix time at the end of a picture's file name. Raises EpisodeError if there is none."""
    stem = os.path.basename(name).rsplit(".", 1)[0]
    try:
        time = float(stem.rsplit("_", 1)[-1])
    except ValueError as error:
        raise EpisodeError(f"{name}: the file name does not end in a unix time") from error
    if not np.isfinite(time):
        raise EpisodeError(f"{name}: the file name does not end in a unix time")
    return time


def check_picture(name: str, data: bytes, formats: Iterable[str] = ("JPEG", "PNG")) -> None:
    """Decodes an encoded image to its end. Raises EpisodeError, which calls it `name`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(io.BytesIO(data), formats=tuple(formats)) as image:
                if image.width * image.height > MAX_IMAGE_PIXELS:
                    raise EpisodeError(f"{name}: {image.width}x{image.height} pixels are absurdly many")
                image.draft("L", (1, 1))
                image.load()
    except UnidentifiedImageError as error:
        problem = "is empty" if not data else "is not a JPEG or PNG picture"
        raise EpisodeError(f"{name}: {problem}") from error
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError, MemoryError) as error:
        raise EpisodeError(f"{name}: unreadable picture ({error})") from error
