"""The pictures: what shows in them, and what does not."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.phantom.camera import SIDE_CAMERAS, VIEWS, PinholeCamera, SceneRenderer
from experiments.phantom.scenario import MARKER_COLOURS, draw_scenario

SCENARIO = replace(draw_scenario(np.random.default_rng(3)), marker="Red", brightness=1.0)


def pictures(scenario, pose, image_size=112, seed=0):
    renderer = SceneRenderer(scenario, image_size)
    return renderer.render(np.asarray(pose, dtype=float), np.random.default_rng(seed))


def marker_pixels(image):
    """Where a picture is red."""
    red, green, blue = image.astype(float).transpose(2, 0, 1)
    return (red > 1.8 * green) & (red > 1.8 * blue)


def centre(mask):
    return np.array([index.mean() for index in np.nonzero(mask)])


def upright(offset_x, offset_y, height):
    x, y = SCENARIO.marker_xy_mm
    return [x + offset_x, y + offset_y, SCENARIO.surface_z_mm + height, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("image_size", [112, 56])
def test_three_pictures_of_the_size_asked_for(image_size):
    images = pictures(SCENARIO, SCENARIO.start_pose, image_size)
    assert tuple(images) == VIEWS
    for image in images.values():
        assert image.shape == (image_size, image_size, 3)
        assert image.dtype == np.uint8


def test_projection_of_known_points():
    camera = PinholeCamera((0.0, -100.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0), 20.0)
    pixels = camera.project(np.array([[0.0, 0, 0], [10.0, 0, 0], [0.0, 0, 10], [10.0, 100, 0]]), 100)
    np.testing.assert_allclose(pixels, [[50, 50], [100, 50], [50, 0], [75, 50]])


def test_the_marker_shows_in_every_view_wherever_it_may_be():
    for seed in range(25):
        scenario = replace(draw_scenario(np.random.default_rng(seed)), marker="Red")
        for image in pictures(scenario, scenario.start_pose).values():
            assert marker_pixels(image).sum() > 60


def test_the_tool_camera_shows_the_lateral_offset():
    """A millimetre of offset moves the marker by several pixels, the right way, in the picture from the tool."""
    at = {
        xy: centre(marker_pixels(pictures(SCENARIO, upright(*xy, 6.0))["View1"]))
        for xy in [(1, 0), (-1, 0), (0, 1), (0, -1)]
    }
    along_x, along_y = at[1, 0] - at[-1, 0], at[0, 1] - at[0, -1]
    assert min(np.linalg.norm(along_x), np.linalg.norm(along_y)) > 8
    assert abs(along_x @ along_y) < 0.1 * np.linalg.norm(along_x) * np.linalg.norm(along_y)


def test_the_tool_camera_rides_on_the_tool():
    """Turning the tool about the needle turns the scene and leaves the needle where it is in the picture."""
    straight = pictures(SCENARIO, upright(2, 0, 6))["View1"]
    turned = pictures(SCENARIO, [*upright(2, 0, 6)[:3], 0.0, 0.0, 20.0])["View1"]
    moved = centre(marker_pixels(turned)) - centre(marker_pixels(straight))
    assert np.linalg.norm(moved) > 3
    middle = (slice(10, 40), slice(52, 60))
    assert np.abs(straight[middle].astype(int) - turned[middle]).max() < 20


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_shows_the_inserted_length_and_the_tilt(view):
    def differing(pose):
        difference = pictures(SCENARIO, pose)[view].astype(int) - pictures(SCENARIO, upright(0, 0, -1))[view]
        return (np.abs(difference).max(axis=2) > 30).sum()

    assert differing(upright(0, 0, -1)) == 0
    assert differing(upright(0, 0, -2)) > 30
    assert differing([*upright(0, 0, -1)[:3], 4.0, 4.0, 0.0]) > 30


def test_the_side_cameras_do_not_see_the_needle_inside_the_phantom():
    """Between the marker and the lower edge of the picture nothing changes while the needle goes in."""
    shallow, deep = (pictures(SCENARIO, upright(0, 0, height)) for height in (-0.5, -8.0))
    for view, camera in zip(VIEWS[1:], SIDE_CAMERAS, strict=True):
        entry = camera.project(np.array([[*SCENARIO.marker_xy_mm, SCENARIO.surface_z_mm]]), 112)[0]
        below = slice(int(entry[1]) + 9, None)
        np.testing.assert_array_equal(shallow[view][below], deep[view][below])


def test_the_depths_of_membrane_and_target_are_invisible():
    other = replace(SCENARIO, membrane_mm=1.0, target_mm=8.7, puncture_n=0.31)
    assert other != SCENARIO
    for height in (5.0, -4.0):
        first, second = pictures(SCENARIO, upright(0, 0, height)), pictures(other, upright(0, 0, height))
        for view in VIEWS:
            np.testing.assert_array_equal(first[view], second[view])


def test_colours_differ_and_edges_are_smooth():
    images = {
        marker: pictures(replace(SCENARIO, marker=marker), upright(0.5, 2, 6))["View1"]
        for marker in MARKER_COLOURS
    }
    red = images["Red"].astype(int)
    for marker in ("Green", "Blue", "Yellow"):
        assert (np.abs(images[marker] - red).max(axis=2) > 60).sum() > 100
    # Between the dark ring and the pale block there are mixed pixels.
    apart = pictures(SCENARIO, upright(2.5, 2.5, 6))["View1"]
    row, column = centre(marker_pixels(apart)).astype(int)
    green = apart[row - 5 : row + 6, column - 20 : column + 21, 1]
    assert ((green > 60) & (green < 170)).sum() > 8


def test_noise_comes_from_the_generator_alone():
    first, second, other = (pictures(SCENARIO, SCENARIO.start_pose, seed=s)["View2"] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    assert np.abs(first.astype(int) - other).max() < 20
