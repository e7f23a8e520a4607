"""Boxes drawn into the views of a scan."""

# pyright: basic
# ruff: noqa: ANN401
from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vega_policy.scene.scan import Scan

_NEAR_M = 0.05
_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_EDGES = [(a, b) for a, b in combinations(range(8), 2) if (_CORNERS[a] != _CORNERS[b]).sum() == 1]


def draw_box(
    axis: Any,
    scan: Scan,
    k: int,
    box: NDArray[np.float64],
    colour: tuple[float, ...],
    *,
    linewidth: float = 0.8,
) -> None:
    """Draw the twelve edges of a box where they are in front of the camera.

    Args:
        axis: Of matplotlib, showing the frame.
        scan: Of the frame.
        k: Which of its frames, from 0.
        box: (6,) centre and full size in metres, aligned frame.
        colour: Red, green, blue, opacity in [0, 1].
        linewidth: Of an edge, in points.
    """
    corners = in_camera(scan, k, box[:3] + _CORNERS * box[3:])
    for a, b in _EDGES:
        ends = corners[[a, b]]
        if (ends[:, 2] < _NEAR_M).all():
            continue
        if (ends[:, 2] < _NEAR_M).any():
            share = (_NEAR_M - ends[0, 2]) / (ends[1, 2] - ends[0, 2])
            cut = ends[0] + share * (ends[1] - ends[0])
            ends = np.where((ends[:, 2] < _NEAR_M)[:, None], cut, ends)
        pixels = ends @ scan.intrinsics.T
        axis.plot(*(pixels[:, :2] / pixels[:, 2:]).T, color=colour, linewidth=linewidth)


def in_camera(scan: Scan, k: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points (n, 3) of the aligned frame in the camera of frame ``k``."""
    to_camera = np.linalg.inv(scan.axis_alignment @ scan.frames[k].pose)
    return points @ to_camera[:3, :3].T + to_camera[:3, 3]
