"""Three cameras: one on the tool beside the needle, two beside the phantom at different azimuths.

Pinhole projection of a small scene, drawn with anti-aliasing. The phantom is opaque: the needle shows down to the
surface, so its inserted length can be seen, but nothing of the membrane and of the target layer can.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from experiments.phantom.kinematics import rotation_matrix
from experiments.phantom.scenario import ALL_COLOURS, START_XY_MM, SURFACE_Z_MM, Scenario

VIEWS = ("View1", "View2", "View3")
"""View1 rides on the tool and looks along the needle; View2 and View3 stand beside the phantom."""

MARKER_RADIUS_MM, RING_RADIUS_MM = 1.5, 2.8
"""The marker is a disc of the episode's colour in a violet ring. The ring is the same for every colour and unlike all
else in the scene, so that a few dozen episodes are enough to learn where a marker of any colour is."""

NEEDLE_LENGTH_MM = 12.0
"""From the tip to the hub."""

_SUPERSAMPLING = 3
_BLOCK_MM = (26.0, 26.0, 9.0)
_NEEDLE_RADIUS_MM, _HUB_RADIUS_MM, _HUB_LENGTH_MM = 0.3, 1.5, 9.0
_RULER_XY_MM, _RULER_HEIGHT_MM = (-11.0, 3.5), 12.0
_TABLE, _BLOCK_TOP, _BLOCK_SIDE, _BLOCK_SIDE_2 = (
    (44, 47, 54),
    (222, 214, 196),
    (172, 164, 146),
    (150, 143, 128),
)
_STEEL, _MARK, _HUB, _ARM = (150, 156, 166), (40, 42, 48), (236, 236, 232), (52, 120, 150)
_RULER, _RULER_MARK, _SCREW, _RING = (245, 245, 240), (30, 30, 30), (120, 112, 98), (110, 20, 120)
_PIXEL_NOISE = 1.5


@dataclass(frozen=True)
class PinholeCamera:
    """Where a camera is, what it looks at and how large a millimetre appears; in the frame it is fixed to."""

    position_mm: tuple[float, float, float]
    look_at_mm: tuple[float, float, float]
    up: tuple[float, float, float]
    field_mm: float
    """Width of the field at the distance of `look_at_mm`."""

    @cached_property
    def axes(self) -> NDArray:
        """The rows right, down, forward, [3, 3]."""
        forward = np.subtract(self.look_at_mm, self.position_mm)
        right = _cross(forward, np.asarray(self.up))
        down = _cross(forward, right)
        rows = np.stack([right, down, forward])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    @cached_property
    def distance_mm(self) -> float:
        """From the camera to what it looks at."""
        return float(np.linalg.norm(np.subtract(self.look_at_mm, self.position_mm)))

    def project(self, points_mm: NDArray, num_pixels: int) -> NDArray:
        """Returns pixel coordinates [n, 2] of points [n, 3]; [0, num_pixels) is inside the picture."""
        seen = (points_mm - self.position_mm) @ self.axes.T
        focal = num_pixels * self.distance_mm / self.field_mm
        return seen[:, :2] * (focal / np.maximum(seen[:, 2:], 1.0)) + num_pixels / 2


TOOL_CAMERA = PinholeCamera((-14.0, 0.0, 42.0), (0.0, 0.0, -4.0), (1.0, 0.0, 0.0), 18.0)
"""In the tool frame."""
SIDE_CAMERAS = tuple(
    PinholeCamera(
        (
            START_XY_MM[0] + 105.0 * np.cos(azimuth),
            START_XY_MM[1] + 105.0 * np.sin(azimuth),
            SURFACE_Z_MM + 70.0,
        ),
        (START_XY_MM[0], START_XY_MM[1], SURFACE_Z_MM + 6.5),
        (0.0, 0.0, 1.0),
        25.0,
    )
    for azimuth in np.radians([20.0, 110.0])
)
"""In the base frame of the robot."""


class SceneRenderer:
    """Draws one scenario's pictures."""

    def __init__(self, scenario: Scenario, image_size: int):
        self._scenario = scenario
        self._image_size = image_size
        self._num_pixels = image_size * _SUPERSAMPLING
        # The side cameras' pictures without the needle, for as long as the phantom stays where it is.
        self._backgrounds: list[Image.Image] = []
        x = np.linspace(-1, 1, image_size, dtype=np.float32)
        vignette = 1.0 - 0.08 * (x[:, None] ** 2 + x[None, :] ** 2)
        self._light = (scenario.brightness * vignette)[..., None]

    def render(
        self, pose: NDArray, rng: np.random.Generator, scenario: Scenario | None = None
    ) -> dict[str, NDArray]:
        """Returns view -> picture (uint8 [size, size, 3]) of the needle at `pose` (6,), with pixel noise from `rng`.

        scenario: the same, with the phantom where it is now; where it was before by default.
        """
        if not self._backgrounds or (scenario is not None and scenario != self._scenario):
            self._scenario = scenario or self._scenario
            self._backgrounds = [self._draw_phantom(camera) for camera in SIDE_CAMERAS]
        rotation = rotation_matrix(pose[3:])
        carried = _carried(TOOL_CAMERA, pose, rotation)
        cameras = (carried, *SIDE_CAMERAS)
        without_needle = (self._draw_phantom(carried), *(image.copy() for image in self._backgrounds))
        images = {}
        for view, camera, image in zip(VIEWS, cameras, without_needle, strict=True):
            self._draw_needle(image, camera, pose, rotation)
            images[view] = self._develop(image, rng)
        return images

    def _develop(self, image: Image.Image, rng: np.random.Generator) -> NDArray:
        pixels = np.asarray(image.reduce(_SUPERSAMPLING), np.float32) * self._light
        pixels += _PIXEL_NOISE * rng.standard_normal(pixels.shape, dtype=np.float32)
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)

    def _draw_phantom(self, camera: PinholeCamera) -> Image.Image:
        """Draws the table, the block, the ruler and the marker."""
        image = Image.new("RGB", (self._num_pixels, self._num_pixels), _TABLE)
        draw = ImageDraw.Draw(image)
        scene = self._scenario
        centre = np.array([*scene.phantom_xy_mm, scene.surface_z_mm])
        half_x, half_y = _BLOCK_MM[0] / 2, _BLOCK_MM[1] / 2
        corners = np.array([[-half_x, -half_y], [half_x, -half_y], [half_x, half_y], [-half_x, half_y]])
        top = np.column_stack([corners, np.zeros(4)]) + centre
        bottom = top - [0, 0, _BLOCK_MM[2]]
        for i in range(4):
            j = (i + 1) % 4
            self._polygon(
                draw,
                camera,
                np.stack([top[i], top[j], bottom[j], bottom[i]]),
                _BLOCK_SIDE if i % 2 else _BLOCK_SIDE_2,
            )
        self._polygon(draw, camera, top, _BLOCK_TOP)
        for x, y in 0.84 * corners:
            self._disc(draw, camera, centre + np.array([x, y, 0.0]), 1.0, _SCREW)
        marker = np.array([*scene.marker_xy_mm, scene.surface_z_mm])
        self._disc(draw, camera, marker, RING_RADIUS_MM, _RING)
        self._disc(draw, camera, marker, MARKER_RADIUS_MM, ALL_COLOURS[scene.marker])
        self._draw_ruler(draw, camera, centre + np.array([*_RULER_XY_MM, 0.0]))
        return image

    def _draw_ruler(self, draw: ImageDraw.ImageDraw, camera: PinholeCamera, foot: NDArray) -> None:
        """Draws an upright depth scale with a mark every two millimetres."""
        up = np.array([0.0, 0.0, 1.0])
        self._rod(draw, camera, foot, foot + up * _RULER_HEIGHT_MM, 0.8, _RULER)
        for height in range(2, int(_RULER_HEIGHT_MM), 2):
            self._rod(draw, camera, foot + up * (height - 0.2), foot + up * (height + 0.2), 0.8, _RULER_MARK)

    def _draw_needle(
        self, image: Image.Image, camera: PinholeCamera, pose: NDArray, rotation: NDArray
    ) -> None:
        """Draws hub, connector and graduated needle, down to the phantom's surface."""
        draw = ImageDraw.Draw(image)
        tip, axis, side = pose[:3], rotation[:, 2], rotation[:, 0]
        hidden = max((self._scenario.surface_z_mm - tip[2]) / axis[2], 0.0)

        def along(distance: float) -> NDArray:
            return tip + axis * distance

        if hidden < NEEDLE_LENGTH_MM:
            self._rod(draw, camera, along(hidden), along(NEEDLE_LENGTH_MM), _NEEDLE_RADIUS_MM, _STEEL)
            for mark in np.arange(2.0, NEEDLE_LENGTH_MM, 2.0):
                if mark > hidden + 0.2:
                    self._rod(draw, camera, along(mark - 0.25), along(mark + 0.25), _NEEDLE_RADIUS_MM, _MARK)
        hub = along(NEEDLE_LENGTH_MM + 2.0)
        self._rod(draw, camera, hub, hub + side * 6.0, 0.9, _ARM)
        self._rod(
            draw,
            camera,
            along(NEEDLE_LENGTH_MM),
            along(NEEDLE_LENGTH_MM + _HUB_LENGTH_MM),
            _HUB_RADIUS_MM,
            _HUB,
        )

    def _polygon(self, draw, camera: PinholeCamera, points: NDArray, colour: tuple[int, int, int]) -> None:
        draw.polygon([tuple(p) for p in camera.project(points, self._num_pixels)], fill=colour)

    def _disc(self, draw, camera: PinholeCamera, centre: NDArray, radius_mm: float, colour) -> None:
        angle = np.linspace(0, 2 * np.pi, 33)[:-1]
        ring = np.column_stack([np.cos(angle), np.sin(angle), np.zeros(32)]) * radius_mm
        self._polygon(draw, camera, centre + ring, colour)

    def _rod(
        self, draw, camera: PinholeCamera, start: NDArray, end: NDArray, radius_mm: float, colour
    ) -> None:
        """Draws a cylinder as the quadrilateral of its silhouette."""
        line_of_sight = (start + end) / 2 - camera.position_mm
        across = _cross(end - start, line_of_sight)
        across *= radius_mm / max(np.linalg.norm(across), 1e-9)
        self._polygon(
            draw, camera, np.stack([start - across, start + across, end + across, end - across]), colour
        )


def _carried(camera: PinholeCamera, pose: NDArray, rotation: NDArray) -> PinholeCamera:
    """Returns a camera of the tool frame in the base frame."""
    return PinholeCamera(
        tuple(pose[:3] + rotation @ camera.position_mm),
        tuple(pose[:3] + rotation @ camera.look_at_mm),
        tuple(rotation @ camera.up),
        camera.field_mm,
    )


def _cross(a: NDArray, b: NDArray) -> NDArray:
    """Returns the vector product of two vectors; `np.cross` takes ten times as long for so few numbers."""
    (a0, a1, a2), (b0, b1, b2) = a, b
    return np.array([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0])
