"""From a camera's frame to the picture a prior is given: which part of it, and how large.

Shape legend: ``f`` frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def whole_frame(frames: Tensor, *, side: int, multiple: int) -> Tensor:
    """Return the whole picture in its own aspect, so that token (i, j) covers what (i, j) covers.

    Args:
        frames: (f, 3, h, w) in [-1, 1].
        side: Pixels of the short side; a square stays a square of this size.
        multiple: Both sides are rounded to multiples of it.
    """
    height, width = frames.shape[-2:]
    scale = side / min(height, width)
    size = tuple(
        max(multiple, multiple * round(length * scale / multiple)) for length in (height, width)
    )
    if height == width:
        size = (side, side)
    if size == (height, width):
        return frames
    resized = functional.interpolate(frames.float(), size, mode="bicubic", antialias=True)
    return resized.clamp(-1, 1)


def cover_and_crop(frames: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Return what the released code gives its prior: cover-resize, then centre crop.

    Bilinear with half-pixel centres and no antialiasing. At 1280x720 a square frame loses 44 % of its
    rows, yet its token grid is fused index by index with tokens of the full frame.

    Args:
        frames: (f, 3, h, w) in [-1, 1].
        size: Height and width of the result.
    """
    height, width = frames.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    grown = (round(height * scale), round(width * scale))
    resized = functional.interpolate(frames.float(), grown, mode="bilinear", align_corners=False)
    top, left = (grown[0] - size[0]) // 2, (grown[1] - size[1]) // 2
    return resized[..., top : top + size[0], left : left + size[1]]
