import io

import numpy as np
import pytest
from PIL import Image

from feature_cache.pictures import rgb_image
from tests.feature_cache.conftest import random_image
from vla_jax.errors import UserError


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_bytes_pixels_and_images_are_the_same_picture():
    image = random_image(0, 84, 56)
    for form in (png(image), np.asarray(image), image):
        np.testing.assert_array_equal(np.asarray(rgb_image(form, "a")), np.asarray(image))


def test_other_modes_become_rgb():
    grey = Image.new("L", (28, 28), 90)
    for form in (grey, png(grey)):
        np.testing.assert_array_equal(np.asarray(rgb_image(form, "a")), np.full((28, 28, 3), 90))


def test_a_truncated_image_is_named():
    buffer = io.BytesIO()
    random_image(0, 112, 112).save(buffer, "JPEG")
    with pytest.raises(UserError, match=r"short\.jpg: damaged image"):
        rgb_image(buffer.getvalue()[:-400], "short.jpg")


@pytest.mark.parametrize("pixels", [np.zeros((28, 28)), np.zeros((28, 28, 4), np.uint8)], ids=str)
def test_arrays_that_are_no_pictures_are_refused(pixels):
    with pytest.raises(UserError, match=r"View1: a picture is uint8 \[height, width, 3\]"):
        rgb_image(pixels, "View1")
