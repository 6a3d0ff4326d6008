"""Pictures of requests: sizes are looked at before pixels, and of files only what is whole and known."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from vla_jax.serving.pictures import decode
from vla_jax.serving.request_spec import MAX_PIXELS, MAX_SIDE, MIN_SIDE
from vla_jax.serving.requests import RequestError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def file(form, pixels=PIXELS, mode="RGB"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form)
    return buffer.getvalue()


def test_pixels_and_files_are_read():
    np.testing.assert_array_equal(np.asarray(decode(PIXELS, "View1")), PIXELS)
    np.testing.assert_array_equal(np.asarray(decode(file("PNG"), "View1")), PIXELS)
    assert decode(file("JPEG"), "View1").size == (60, 40)
    assert decode(file("PNG", mode="L"), "View1").mode == "RGB"


@pytest.mark.parametrize("form", ["BMP", "TIFF", "GIF", "PPM"])
def test_other_formats_are_refused(form):
    with pytest.raises(RequestError, match="View1: no whole JPEG or PNG"):
        decode(file(form), "View1")


@pytest.mark.parametrize("size", [(MIN_SIDE - 1, 100), (100, MAX_SIDE + 1), (2048, MAX_PIXELS // 2048 + 1)])
def test_sizes_out_of_bounds_are_refused(size):
    with pytest.raises(RequestError, match=f"has {size[1]}x{size[0]} pixels"):
        decode(np.zeros((*size, 3), np.uint8), "View1")


def test_a_small_file_of_many_pixels_is_refused_by_its_header():
    small = file("PNG")
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + small[24:29]
    bomb = small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:]
    with pytest.raises(RequestError, match=r"pixels|no whole"):
        decode(bomb, "View1")


def test_two_hundred_damaged_files_raise_one_kind_of_error():
    rng = np.random.default_rng(3)
    refused = 0
    for number in range(200):
        data = bytearray(file("PNG" if number % 2 else "JPEG"))
        for place in rng.integers(0, len(data), 8):
            data[place] = rng.integers(256)
        if number % 3 == 0:
            del data[rng.integers(1, len(data)) :]
        try:
            decode(bytes(data), "View1")
        except RequestError:
            refused += 1
    assert refused > 100
