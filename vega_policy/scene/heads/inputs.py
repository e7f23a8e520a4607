"""From a scan or a video to what the scene models take.

Shape legend: ``v`` views, ``h, w`` pixels of the model's image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vega_policy.scene.scan import Frame, Scan


POINTS_PX = 32
"""Side of a map of points: 16 points a patch of a nano model tell its objects apart, in a sixteenth of
the memory that all would take."""


@dataclass(frozen=True, eq=False)
class SceneInputs:
    """One scene, ready for a model."""

    pixels: Tensor
    """(v, 3, h, w) uint8 RGB."""
    points: Tensor | None = None
    """(v, h', w', 3) float32, the surface each pixel shows, in metres in the aligned frame; where no
    depth was measured, the camera's own place. As many as pixels, or evenly spaced ones. None without
    depth."""
    measured: Tensor | None = None
    """(v, h', w') True where depth was measured; None without depth."""


def scene_inputs(scan: Scan, *, px: int, points_px: int | None = None) -> SceneInputs:
    """Stretch frames to a square, and lift their depth into the aligned frame.

    Colour is resized with an antialiased bicubic filter (frames of the right size stay as they are),
    depth by its nearest pixel. The two cameras of a scan are taken to see the same rectangle.

    Args:
        scan: Frames with poses; depth either in all or in none.
        px: Side of the model's image.
        points_px: Side of the map of points: fewer take less memory. None: one for each pixel.

    Raises:
        ContractError: There is no frame, or some frames lack depth; all are listed.
    """
    if not scan.frames:
        raise ContractError(f"scene {scan.scene_id} has no frames; read it with at least one")
    bare = [f.index for f in scan.frames if f.depth_m is None]
    if bare and len(bare) < len(scan.frames):
        raise ContractError(
            f"scene {scan.scene_id}: frames {bare} have no depth and the others do; add their depth "
            "or leave them out"
        )
    pixels = resize_frames([f.image for f in scan.frames], size=(px, px))
    if bare:
        return SceneInputs(pixels=pixels)
    lifted = [_lift(frame, scan, px if points_px is None else points_px) for frame in scan.frames]
    return SceneInputs(
        pixels=pixels,
        points=torch.from_numpy(np.stack([p for p, _ in lifted])),
        measured=torch.from_numpy(np.stack([m for _, m in lifted])),
    )


def video_inputs(
    images: Sequence[NDArray[np.uint8]], *, width_px: int, unit_px: int
) -> SceneInputs:
    """Resize frames for `VsiModel` as the released code does.

    The width becomes ``width_px`` and the height the nearest multiple of half a unit in the same
    aspect; then both are cut around the centre to whole units: 640 x 480 becomes 504 x 392 with a
    width of 518 and units of 28.

    Args:
        images: (h, w, 3) RGB of one size.
        width_px: Width before the cut.
        unit_px: Pixels of one token along one side.

    Raises:
        ContractError: There is no frame, sizes are mixed, or an image is too small for one token.
    """
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) != 1:
        raise ContractError(f"frames have sizes {sizes}, expected one; give frames of one video")
    (height, width) = sizes[0]
    half = unit_px // 2
    grown = (round(height * width_px / width / half) * half, width_px)
    cut = tuple(length // unit_px * unit_px for length in grown)
    if 0 in cut:
        raise ContractError(
            f"frames of {width}x{height} give {grown[1]}x{grown[0]} pixels, less than one token of "
            f"{unit_px}; raise width_px"
        )
    pixels = resize_frames(images, size=grown)
    top, left = ((a - b) // 2 for a, b in zip(grown, cut, strict=True))
    return SceneInputs(pixels=pixels[..., top : top + cut[0], left : left + cut[1]].contiguous())


def resize_frames(images: Sequence[NDArray[np.uint8]], *, size: tuple[int, int]) -> Tensor:
    """Return (v, 3, *size) uint8 of (h, w, 3) images, resized where they have another size."""
    return torch.stack([_resized(image, size) for image in images])


def _resized(image: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    # A copy: images read from files may not be writable, which torch cannot hold.
    plane = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if image.shape[:2] == size:
        return plane.contiguous()
    grown = functional.interpolate(plane[None].float(), size, mode="bicubic", antialias=True)
    return grown[0].round().clamp(0, 255).to(torch.uint8)


def _lift(frame: Frame, scan: Scan, px: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return aligned points (px, px, 3) of a frame's depth, and where it was measured."""
    depth = frame.depth_m
    if depth is None:
        raise ValueError("the frame has no depth")
    height, width = depth.shape
    rows = ((np.arange(px) + 0.5) * height / px).astype(np.int64)
    columns = ((np.arange(px) + 0.5) * width / px).astype(np.int64)
    z = depth[np.ix_(rows, columns)].astype(np.float64)
    k = scan.depth_intrinsics
    x = (columns[None, :] - k[0, 2]) / k[0, 0] * z
    y = (rows[:, None] - k[1, 2]) / k[1, 1] * z
    to_aligned = scan.axis_alignment @ frame.pose
    camera = np.stack([x, y, z], axis=-1)
    points = camera @ to_aligned[:3, :3].T + to_aligned[:3, 3]
    return points.astype(np.float32), z > 0
