"""What a model knows of a proposed object: the tokens of its surface, and where it stands.

Shape legend: ``v`` views, ``m`` patches of one view, ``p`` points of one patch, ``n`` boxes, ``d`` width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def patch_points(points: Tensor, *, patch_px: int) -> Tensor:
    """Cut maps (v, h, w, ...) into patches (v, m, p, ...), row-major, as the towers cut the image.

    Pixels behind the last whole patch are left out.
    """
    side = [length // patch_px * patch_px for length in points.shape[1:3]]
    cut = points[:, : side[0], : side[1]]
    cut = cut.unflatten(1, (-1, patch_px)).unflatten(3, (-1, patch_px))
    return cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def patches_of_boxes(points: Tensor, counts: Tensor, boxes: Tensor) -> Tensor:
    """Tell which patches belong to which box: at least half of a patch's points lie inside.

    Half of all pixels of the patch, whether or not they take part: 98 of 196 in the released code.

    Args:
        points: See `shares_of_boxes`.
        counts: See there.
        boxes: See there.

    Returns:
        (n, v, m) bool.
    """
    return shares_of_boxes(points, counts, boxes) >= 0.5


def shares_of_boxes(points: Tensor, counts: Tensor, boxes: Tensor) -> Tensor:
    """Return which share of each patch's points lies in each box.

    Args:
        points: (v, m, p, 3) in metres.
        counts: (v, m, p) True where a point takes part.
        boxes: (n, 6) centre and full size.

    Returns:
        (n, v, m) float in [0, 1].
    """
    low, high = boxes[:, :3] - boxes[:, 3:] / 2, boxes[:, :3] + boxes[:, 3:] / 2
    shares = points.new_zeros(len(boxes), *points.shape[:2])
    # Most patches are nowhere near most boxes; only the others are looked at point by point.
    first, last = points.amin(2), points.amax(2)
    for row, a, b in zip(shares, low.to(points), high.to(points), strict=True):
        near = ((first <= b) & (last >= a)).all(-1)
        inside = ((points[near] >= a) & (points[near] <= b)).all(-1) & counts[near]
        row[near] = inside.sum(-1).to(shares) / points.shape[2]
    return shares


def object_means(tokens: Tensor, weight: Tensor) -> Tensor:
    """Return the mean token (n, d) of each box over all views; zeros where no patch belongs to it.

    Args:
        tokens: (v, m, d) semantic tokens *before* fusion: in the released code the prior reaches
            objects only through what the language model says of the text.
        weight: (n, v, m) of `patches_of_boxes` or `shares_of_boxes`.
    """
    weight = weight.flatten(1).to(tokens.dtype)
    total = weight @ tokens.flatten(0, 1)
    whole = weight.sum(1, keepdim=True)
    return total / torch.where(whole > 0, whole, 1)
