"""The phantom's pictures as the lab's cameras send them."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_SIDES = (44, 47, 54)  # the table's colour


def camera_jpeg(pixels: UInt8[np.ndarray, "s s 3"], width: int, height: int, quality: int) -> bytes:
    """Returns a picture of that size: the square one, enlarged to its height, between strips of table."""
    image = Image.fromarray(pixels)
    side = min(width, height)
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    if width != height:
        whole = Image.new("RGB", (width, height), _SIDES)
        whole.paste(image, ((width - side) // 2, (height - side) // 2))
        image = whole
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()
