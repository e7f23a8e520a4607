"""Rotation matrices of the hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""Grip frame with the fingers pointing down, hand at yaw 0."""


def wrap_half(angle: float) -> float:
    """Wrap an undirected axis angle to [-pi/2, pi/2)."""
    return (angle + np.pi / 2) % np.pi - np.pi / 2


def about(axis: NDArray[Any], angle: float) -> NDArray[np.float64]:
    """Return the rotation by ``angle`` radians about ``axis`` (3,)."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def yaw_matrix(angle: float) -> NDArray[np.float64]:
    """Return the rotation by ``angle`` radians about the vertical."""
    return about(np.array([0.0, 0.0, 1.0]), angle)


def upright(rotation: NDArray[Any]) -> NDArray[np.float64]:
    """Return the nearest hand rotation whose fingers point straight down."""
    x = rotation[:, 0] - np.array([0.0, 0.0, rotation[2, 0]])
    x /= np.linalg.norm(x)
    z = np.array([0.0, 0.0, -1.0])
    return np.stack([x, np.cross(z, x), z], axis=1)


def axis_angle(rotation: NDArray[Any]) -> NDArray[np.float64]:
    """Return the rotation vector of a matrix, angle in [0, pi]."""
    vector = np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    sine, cosine = np.linalg.norm(vector) / 2, (np.trace(rotation) - 1) / 2
    if sine < 1e-8:
        return np.zeros(3)
    return vector / (2 * sine) * np.arctan2(sine, cosine)
