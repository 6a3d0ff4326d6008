"""Pictures in whatever form they come: a file's bytes, pixels, or an image that is open already."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from vla_jax.errors import UserError

Picture = bytes | np.ndarray | Image.Image


def rgb_image(picture: Picture, name: str) -> Image.Image:
    """Returns a picture decoded, in RGB.

    picture: bytes of an image file, pixels (uint8 [height, width, 3]), or an image. name: of it, for errors.

    Raises:
        UserError: the bytes are no whole image, or the pixels no colour picture.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise UserError(
                f"{name}: a picture is uint8 [height, width, 3], not {picture.dtype} {list(picture.shape)}"
            )
        return Image.fromarray(picture)
    try:
        if isinstance(picture, bytes):
            with Image.open(io.BytesIO(picture)) as image:
                return image.convert("RGB")
        return picture.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: damaged image ({error})") from error
