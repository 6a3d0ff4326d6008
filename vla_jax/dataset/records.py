"""Vision-language records: what the backbone encodes at once, and the pictures it needs for that."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vla_jax.dataset.schema import unpack_texts
from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.frame import Frame
from vla_jax.recordings.registry import reader_of

if TYPE_CHECKING:
    from vla_jax.dataset.packed_dataset import PackedDataset


@dataclass(frozen=True)
class ImageRef:
    """A picture in its recording. digest: hex, of its content when the data set was packed (`Frame.load`)."""

    view: str
    frame: Frame
    digest: str

    @property
    def path(self) -> Path:
        """Where it lies; a name to tell it by where it is no file of its own."""
        return self.frame.path

    def open(self) -> BinaryIO:
        """Opens the picture as an encoded image. Raises OSError where it cannot be read."""
        try:
            return self.frame.open()
        except EpisodeError as error:
            raise OSError(str(error)) from error

    def load(self) -> tuple[bytes, str]:
        """Returns the encoded image and the digest of its content now. Raises OSError where it cannot be read."""
        try:
            return self.frame.load()
        except EpisodeError as error:
            raise OSError(str(error)) from error

    def size(self) -> tuple[int, int]:
        """Returns (height, width). Raises OSError where it cannot be read."""
        try:
            return self.frame.size()
        except EpisodeError as error:
            raise OSError(str(error)) from error

    def read(self) -> bytes:
        """Returns the bytes of the encoded image. Raises OSError where it cannot be read."""
        with self.open() as handle:
            return handle.read()


@dataclass(frozen=True)
class VLRecord:
    """What the vision-language backbone encodes at once: a prompt and the views present, in view order."""

    prompt: str
    images: tuple[ImageRef, ...]


class Records(Sequence[VLRecord]):
    """The records of a data set, one per camera instant, made when asked for."""

    def __init__(self, dataset: "PackedDataset") -> None:
        self._dataset = dataset
        self._images = dataset.array("instant_images")
        self._episode = dataset.array("instant_episode")
        self._digest = dataset.array("image_digest")
        self._time = dataset.array("image_time")
        self._locators = dataset.array("image_path"), dataset.array("image_start")
        self._folders: dict[int, Path] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        episode = int(self._episode[index])
        if episode not in self._folders:
            self._folders[episode] = self._dataset.folder(episode)
        rows = zip(self._dataset.meta.views, self._images[index].tolist(), strict=True)
        images = tuple(self._image(episode, view, row) for view, row in rows if row >= 0)
        return VLRecord(self._dataset.episodes[episode].instruction, images)

    def __iter__(self) -> Iterator[VLRecord]:
        return (self[i] for i in range(len(self)))

    def _image(self, episode: int, view: str, row: int) -> ImageRef:
        (locator,) = unpack_texts(*self._locators, row, row + 1)
        reader = reader_of(self._dataset.episodes[episode].format)
        frame = reader.frame(self._folders[episode], locator, float(self._time[row]))
        return ImageRef(view, frame, self._digest[row].tobytes().hex())
