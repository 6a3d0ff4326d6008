"""Rotations, and the joint angles of a Meca500 that holds the needle.

Orientation: Euler angles a, b, r in degrees about mobile x, y, z (the robot's convention): R = Rx(a) Ry(b) Rz(r).
The tool frame sits at the needle's tip with its z axis pointing back along the needle to the hub, so (0, 0, 0) is a
needle that points straight down. Link lengths: Mecademic Meca500 user manual (DH: 135, 135, 38, 120, 70 mm).
"""

import numpy as np
from numpy.typing import NDArray

_BASE_MM, _UPPER_ARM_MM, _ELBOW_MM, _FOREARM_MM, _FLANGE_MM = 135.0, 135.0, 38.0, 120.0, 70.0
NEEDLE_REACH_MM = 90.0
"""From the robot's flange to the needle's tip."""


def rotation_matrix(angles_deg: NDArray) -> NDArray:
    """Returns R = Rx(a) Ry(b) Rz(r), [..., 3, 3], of Euler angles in degrees, [..., 3]."""
    a, b, r = np.moveaxis(np.radians(angles_deg), -1, 0)
    return _about(a, 0) @ _about(b, 1) @ _about(r, 2)


def joint_angles(pose: NDArray) -> NDArray:
    """Returns the joint angles [..., 6] in degrees that bring the tip to `pose` [..., 6] (mm, degrees).

    Closed form for a spherical wrist, elbow up, shoulder forward; joint 5 positive. NaN where the pose is out of reach.
    """
    pose = np.asarray(pose, dtype=np.float64)
    tool = rotation_matrix(pose[..., 3:])
    wrist = pose[..., :3] + tool[..., :, 2] * (NEEDLE_REACH_MM + _FLANGE_MM)
    q1 = np.arctan2(wrist[..., 1], wrist[..., 0])
    radius, height = np.hypot(wrist[..., 0], wrist[..., 1]), wrist[..., 2] - _BASE_MM
    distance = np.hypot(radius, height)
    forearm = np.hypot(_FOREARM_MM, _ELBOW_MM)
    cosine = (_UPPER_ARM_MM**2 + distance**2 - forearm**2) / (2 * _UPPER_ARM_MM * distance)
    cosine = np.where(np.abs(cosine) <= 1, cosine, np.nan)
    q2 = np.arctan2(radius, height) - np.arccos(cosine)
    pitch = np.arctan2(radius - _UPPER_ARM_MM * np.sin(q2), height - _UPPER_ARM_MM * np.cos(q2))
    pitch -= np.arctan2(_FOREARM_MM, _ELBOW_MM)
    # The flange's frame seen from the forearm, with x along the flange's axis: Rx(q4) Ry(q5) Rx(q6).
    flange = tool @ _about(np.asarray(np.pi / 2), 1)  # half a turn from tool to flange, a quarter back to x
    hand = np.swapaxes(_about(q1, 2) @ _about(pitch, 1), -1, -2) @ flange
    q5 = np.arccos(np.clip(hand[..., 0, 0], -1, 1))
    q4 = np.arctan2(hand[..., 1, 0], -hand[..., 2, 0])
    q6 = np.arctan2(hand[..., 0, 1], hand[..., 0, 2])
    return np.degrees(np.stack([q1, q2, pitch - q2, q4, q5, q6], axis=-1))


def _about(angle: NDArray, axis: int) -> NDArray:
    """Returns rotation matrices [..., 3, 3] by `angle` [...] radians about coordinate axis 0, 1 or 2."""
    cosine, sine = np.cos(angle), np.sin(angle)
    matrix = np.zeros((*np.shape(angle), 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[..., axis, axis] = 1.0
    matrix[..., i, i] = matrix[..., j, j] = cosine
    matrix[..., i, j], matrix[..., j, i] = -sine, sine
    return matrix
