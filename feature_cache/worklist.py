"""The export's list of work: which records are missing, in which batches, for which process."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from feature_cache.keys import image_digest, record_key
from vla_jax.errors import UserError


class EncodedImage(Protocol):
    """One image: what to call it, how to read it, and the digest it had when the data set was prepared."""

    @property
    def path(self) -> Path | str:
        """What to call it."""

    @property
    def digest(self) -> str:
        """Of its content, when the data set was prepared."""

    def load(self) -> tuple[bytes, str]:
        """Returns the encoded image and the digest of its content now. Raises OSError where it cannot be read."""

    def size(self) -> tuple[int, int]:
        """Returns (height, width); of a frame of a video without decoding it. Raises OSError."""


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """An image that is a file."""

    path: str
    digest: str

    def load(self) -> tuple[bytes, str]:
        """Reads the file; the digest is that of its bytes."""
        data = Path(self.path).read_bytes()
        return data, image_digest(data)

    def size(self) -> tuple[int, int]:
        """Reads the image's head. Raises OSError where it cannot be read, or is no image."""
        with Image.open(self.path) as image:
            return image.height, image.width


@dataclasses.dataclass(frozen=True)
class WorkItem:
    """One record to encode: a prompt and the images that are present, in view order."""

    key: str
    prompt: str
    images: tuple[EncodedImage, ...]


def make_worklist(
    provenance_digest: str, records: Sequence[tuple[str, Sequence[EncodedImage]]]
) -> list[WorkItem]:
    """Returns the work items of (prompt, images) pairs, each key once, in the order of first appearance."""
    items: dict[str, WorkItem] = {}
    for prompt, images in records:
        key = record_key(provenance_digest, prompt, [image.digest for image in images])
        items.setdefault(key, WorkItem(key, prompt, tuple(images)))
    return list(items.values())


def count_tokens(
    items: Sequence[WorkItem],
    num_tokens: Callable[[str, list[tuple[int, int]]], int],
    threads: ThreadPoolExecutor,
) -> np.ndarray:
    """Returns int64 token counts of the items, from the headers of their images.

    Raises:
        UserError: images are missing or no images; says how many and names the first ones.
    """
    images = {str(image.path): image for item in items for image in item.images}
    paths = sorted(images)
    sizes: dict[str, tuple[int, int]] = {}
    faults: list[str] = []
    sources = [images[path] for path in paths]
    for path, (size, fault) in zip(paths, threads.map(_image_size, sources, chunksize=64), strict=True):
        if fault is None:
            sizes[path] = size
        else:
            faults.append(fault)
    if faults:
        raise UserError(
            f"{len(faults)} of {len(paths)} images cannot be read: {'; '.join(faults[:3])}"
            f"{'; …' if len(faults) > 3 else ''}; restore them, or prepare the data set again without them"
        )
    return np.array(
        [num_tokens(item.prompt, [sizes[str(image.path)] for image in item.images]) for item in items],
        np.int64,
    )


def _image_size(source: EncodedImage) -> tuple[tuple[int, int], str | None]:
    try:
        return source.size(), None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        return (0, 0), f"{source.path} ({getattr(error, 'strerror', None) or type(error).__name__})"


def make_batches(num_tokens: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Divides items into batches of similar length: index arrays whose padded size is at most `batch_tokens`.

    The longest come first, so that memory runs out at the beginning if at all. A single item longer than
    `batch_tokens` makes a batch of its own.
    """
    order = np.argsort(-num_tokens, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(num_tokens[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


def process_share() -> tuple[int, int]:
    """Returns (rank, number of processes) that torchrun set in the environment, (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def read_images(item: WorkItem) -> list[tuple[str, bytes]]:
    """Reads the images of one item: path and bytes of each file.

    Raises:
        UserError: an image is missing, or no longer the one that was prepared.
    """
    images = []
    for source in item.images:
        try:
            data, digest = source.load()
        except OSError as error:
            raise UserError(f"{source.path}: cannot read this image ({error.strerror or error})") from error
        if digest != source.digest:
            raise UserError(
                f"{source.path}: this image has changed since the data set was prepared; prepare it again"
            )
        images.append((str(source.path), data))
    return images
