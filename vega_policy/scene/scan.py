"""A posed RGB-D scan and what is known of its objects.

Frames of reference: ``camera`` is OpenCV's (x right, y down, z forward); ``world`` is what the poses of a
scan map to; ``aligned`` is ``axis_alignment @ world``, gravity along -z and walls along the axes, the
frame in which ScanNet's boxes and every coordinate of the heads and metrics are.

Shape legend: ``h, w`` colour image, ``hd, wd`` depth image, ``n`` objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Frame:
    """One view of a scan."""

    index: int
    """Number in the export, as in its file name."""
    image: NDArray[np.uint8]
    """(h, w, 3) RGB, upright."""
    depth_m: NDArray[np.float32] | None
    """(hd, wd) distance along the optical axis in metres, 0 where nothing was measured; None where the
    scan has no depth."""
    pose: NDArray[np.float64]
    """(4, 4) camera to world, finite."""


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object of the ground truth."""

    object_id: int
    label: str
    """Words with blanks, for example ``office chair``."""
    box: NDArray[np.float64]
    """(6,) centre and full size ``cx cy cz dx dy dz`` in metres, axis-aligned in the aligned frame."""
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])
    """What else is known, for example ``colour: red``."""


@dataclass(frozen=True, eq=False)
class Scan:
    """Some frames of one scene."""

    scene_id: str
    frames: Sequence[Frame]
    intrinsics: NDArray[np.float64]
    """(3, 3) of the colour images, pixels."""
    depth_intrinsics: NDArray[np.float64]
    """(3, 3) of the depth images, pixels."""
    axis_alignment: NDArray[np.float64]
    """(4, 4) world to aligned."""
    objects: tuple[SceneObject, ...] = field(default=())
    """Ground truth, where it is known."""
    without_pose: tuple[int, ...] = ()
    """Numbers of the frames left out because tracking was lost there, so that they have no pose."""
