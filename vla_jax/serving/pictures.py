"""Pictures of requests, decoded without trusting them."""

import io

import numpy as np
from PIL import Image

from vla_jax.serving.request_spec import MAX_PIXELS, MAX_SIDE, MIN_SIDE
from vla_jax.serving.requests import RequestError

FORMATS = ("JPEG", "PNG")


def decode(picture: np.ndarray | bytes, name: str) -> Image.Image:
    """Returns a picture in RGB. picture: uint8 [height, width, 3], or the bytes of a file. name: for errors.

    Raises:
        RequestError: the bytes are no whole JPEG or PNG file, or the sides are out of bounds.
    """
    if isinstance(picture, np.ndarray):
        _check_size(picture.shape[1], picture.shape[0], name)
        return Image.fromarray(picture)
    try:
        # The size stands in the header: it is looked at before anything is allocated for the pixels.
        with Image.open(io.BytesIO(picture), formats=FORMATS) as image:
            _check_size(*image.size, name)
            return image.convert("RGB")
    except RequestError:
        raise
    # Of damaged files Pillow raises whatever its decoders do: OSError, SyntaxError, ValueError, struct.error, …
    except Exception as error:
        raise RequestError(f"{name}: no whole JPEG or PNG file") from error


def _check_size(width: int, height: int, name: str) -> None:
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise RequestError(
            f"{name} has {width}x{height} pixels; sides are {MIN_SIDE} to {MAX_SIDE}, all pixels {MAX_PIXELS} at most"
        )
