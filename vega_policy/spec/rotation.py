"""Rotation conventions, defined once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def quat_to_axis_angle(quat_xyzw: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn a unit quaternion into axis times angle, angle in [0, 2 pi].

    This is the convention of the LIBERO demonstrations and of OpenVLA-OFT: the sign of ``w`` is
    *not* normalised first, so a quaternion with ``w < 0`` gives an angle above pi. Normalising it
    costs published policies 14 (goal) to 40 (long) points of success.

    Args:
        quat_xyzw: (4,) in robosuite's order x, y, z, w.

    Returns:
        (3,) radians; zeros where the rotation is the identity.
    """
    w = float(np.clip(quat_xyzw[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    if np.isclose(sine, 0.0):
        return np.zeros(3)
    return np.asarray(quat_xyzw[:3], dtype=np.float64) * (2.0 * np.arccos(w)) / sine
