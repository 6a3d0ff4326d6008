"""Actions made of recorded poses: what each changes to the next, whatever the convention of its angles."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from vla_jax.recordings.findings import EpisodeError
from vla_jax.recordings.lab import wrap_degrees

Rotation = Literal["euler_deg", "euler_rad", "rotvec", "quat_xyzw", "quat_wxyz"]
POSE_SIZES: dict[Rotation, int] = {
    "euler_deg": 6,
    "euler_rad": 6,
    "rotvec": 6,
    "quat_xyzw": 7,
    "quat_wxyz": 7,
}
"""Numbers of a pose: x y z and those of its rotation."""
UNITS = ("mm", "mm", "mm", "deg", "deg", "deg")


def delta_names(rotation: Rotation) -> tuple[str, ...]:
    """Returns the names of a pose's changes: of Euler angles as of the lab's, else of a rotation vector."""
    angles = ("da", "db", "dr") if rotation.startswith("euler") else ("drx", "dry", "drz")
    return ("dx", "dy", "dz", *angles)


def pose_changes(
    poses: Float[np.ndarray, "n p"], rotation: Rotation, millimetres: float
) -> Float32[np.ndarray, "m 6"]:
    """Returns the n − 1 changes between successive poses, in mm and degrees.

    Of Euler angles the recorded numbers' differences, wrapped to (−180, 180]. Of rotation vectors (radians) and
    quaternions, the rotation vector in degrees of R' R⁻¹, which turns each orientation R into the next, R', about axes
    of the base frame.

    millimetres: of a unit of x y z.

    Raises:
        EpisodeError: a number is not finite, or a quaternion is zero.
    """
    poses = np.asarray(poses, np.float64)
    if not np.isfinite(poses).all():
        raise EpisodeError(f"a pose is not finite, in row {int(np.argmin(np.isfinite(poses).all(axis=1)))}")
    changes = np.empty((max(0, len(poses) - 1), 6), np.float32)
    changes[:, :3] = np.diff(poses[:, :3], axis=0) * millimetres
    angles = poses[:, 3 : POSE_SIZES[rotation]]
    if rotation == "euler_deg":
        changes[:, 3:] = wrap_degrees(np.diff(angles, axis=0))
    elif rotation == "euler_rad":
        changes[:, 3:] = wrap_degrees(np.degrees(np.diff(angles, axis=0)))
    else:
        turns = _from_rotvec(angles) if rotation == "rotvec" else _normalised(angles, rotation)
        inverse = turns[:-1] * np.array([-1.0, -1.0, -1.0, 1.0])
        changes[:, 3:] = np.degrees(_to_rotvec(_product(turns[1:], inverse)))
    return changes


def _from_rotvec(vectors: np.ndarray) -> np.ndarray:
    """Returns unit quaternions x y z w."""
    angle = np.linalg.norm(vectors, axis=1, keepdims=True)
    # sin(θ/2)/θ, which np.sinc has without the division by zero.
    return np.concatenate([vectors * 0.5 * np.sinc(angle / (2 * np.pi)), np.cos(angle / 2)], axis=1)


def _normalised(quaternions: np.ndarray, rotation: Rotation) -> np.ndarray:
    if rotation == "quat_wxyz":
        quaternions = quaternions[:, [1, 2, 3, 0]]
    length = np.linalg.norm(quaternions, axis=1, keepdims=True)
    if (length < 1e-6).any():
        raise EpisodeError(f"the quaternion in row {int(np.argmin(length))} is zero")
    return quaternions / length


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns Hamilton's product of quaternions x y z w: first b's rotation, then a's."""
    vector = a[:, 3:] * b[:, :3] + b[:, 3:] * a[:, :3] + np.cross(a[:, :3], b[:, :3])
    return np.concatenate(
        [vector, a[:, 3:] * b[:, 3:] - (a[:, :3] * b[:, :3]).sum(axis=1, keepdims=True)], axis=1
    )


def _to_rotvec(quaternions: np.ndarray) -> np.ndarray:
    """Returns rotation vectors of at most half a turn, radians."""
    quaternions = np.where(quaternions[:, 3:] < 0, -quaternions, quaternions)
    sine = np.linalg.norm(quaternions[:, :3], axis=1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternions[:, 3:])
    scale = np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 2.0)
    return quaternions[:, :3] * scale
