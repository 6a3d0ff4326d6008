"""Texts of unequal length as two arrays that can be mapped: their bytes, and where each one starts."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Int64, UInt8


def pack_texts(texts: Sequence[str]) -> tuple[UInt8[np.ndarray, " bytes"], Int64[np.ndarray, " starts"]]:
    """Returns the UTF-8 bytes of all texts, one after another, and the n + 1 places where each begins and ends."""
    encoded = [text.encode() for text in texts]
    starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), starts


def unpack_texts(
    text: UInt8[np.ndarray, " bytes"], starts: Int64[np.ndarray, " starts"], first: int, stop: int
) -> list[str]:
    """Returns the texts first … stop − 1."""
    bounds = starts[first : stop + 1].tolist()
    return [text[a:b].tobytes().decode() for a, b in pairwise(bounds)]
