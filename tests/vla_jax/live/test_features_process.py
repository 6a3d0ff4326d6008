"""Features are made in a process of their own: damaged pictures, a backbone that dies, one that does not fit."""

import os
import signal
import time

import numpy as np
import pytest

from tests.waiting import wait_until
from vla_jax.contracts.specs import FeatureSpec
from vla_jax.errors import UserError
from vla_jax.live.buffers import PictureBuffer
from vla_jax.live.clock import LocalClock
from vla_jax.live.features import MAX_DEATHS, MAX_PICTURE_AGE_S, FeatureProcess
from vla_jax.live.streams import Picture


class Echo:
    """Features that tell the pictures: the length of each."""

    spec = FeatureSpec(2, 1)

    def encode(self, prompt, images):
        if any(image == b"torn" for image in images.values()):
            raise ValueError("torn")
        sizes = [len(images.get(view, b"")) for view in ("View1", "View2")]
        return np.array(sizes, np.float32)[:, None], np.array(sizes) > 0


def refuse():
    raise UserError("another backbone")


@pytest.fixture
def pictures():
    return PictureBuffer()


@pytest.fixture
def clock():
    return LocalClock()


def make(pictures, clock, encoder=Echo):
    return FeatureProcess(encoder, "insert", pictures, clock, period_s=0.01)


def show(pictures, clock, view, jpeg, age=0.0):
    now = clock.now()
    pictures.add(Picture(view, now - age, now, jpeg))


def test_the_newest_pictures_become_features_and_a_dead_process_is_started_anew(pictures, clock):
    features = make(pictures, clock)
    features.start()
    try:
        features.wait_until_open()
        show(pictures, clock, "View1", b"12345")
        wait_until(lambda: features.newest is not None, 20)
        found = features.newest
        np.testing.assert_array_equal(found.vl, [[5], [0]])
        np.testing.assert_array_equal(found.vl_mask, [True, False])
        assert found.oldest == pictures.newest(clock.now())["View1"].time

        show(pictures, clock, "View2", b"torn")
        wait_until(lambda: features.damaged == 1, 20)
        assert features.newest.number == 1
        time.sleep(0.001)
        show(pictures, clock, "View2", b"123")
        wait_until(lambda: features.newest.number == 2, 20)
        np.testing.assert_array_equal(features.newest.vl, [[5], [3]])

        os.kill(features.pid, signal.SIGKILL)
        show(pictures, clock, "View1", b"1")
        wait_until(lambda: features.deaths == 1, 20)

        def shown_again():
            # Starting takes its time, after which pictures from before would be too old.
            show(pictures, clock, "View1", b"1")
            show(pictures, clock, "View2", b"123")
            return features.newest.number >= 3

        wait_until(shown_again, 60)
        np.testing.assert_array_equal(features.newest.vl, [[1], [3]])
        assert features.failure is None
    finally:
        features.close()


def test_a_set_with_a_picture_of_a_camera_that_stopped_is_not_encoded(pictures, clock):
    features = make(pictures, clock)
    show(pictures, clock, "View2", b"123", age=MAX_PICTURE_AGE_S + 0.1)
    show(pictures, clock, "View1", b"12345")
    assert features._choose({}) is None
    show(pictures, clock, "View2", b"1", age=MAX_PICTURE_AGE_S - 0.5)
    chosen = features._choose({})
    assert set(chosen) == {"View1", "View2"}
    assert features._choose({view: picture.time for view, picture in chosen.items()}) is None


class Deadly(Echo):
    def encode(self, prompt, images):
        os._exit(1)


def test_a_backbone_that_does_not_fit_is_refused(pictures, clock):
    features = make(pictures, clock, refuse)
    features.start()
    with pytest.raises(UserError, match="another backbone"):
        features.wait_until_open()
    features.close()


def test_one_that_dies_again_and_again_is_given_up(pictures, clock):
    features = make(pictures, clock, Deadly)
    features.start()
    try:
        features.wait_until_open()
        until = time.monotonic() + 60
        while features.failure is None and time.monotonic() < until:
            show(pictures, clock, "View1", b"1")
            time.sleep(0.01)
        assert features.failure is not None
        assert f"died {MAX_DEATHS + 1} times within a minute" in features.failure
    finally:
        features.close()
