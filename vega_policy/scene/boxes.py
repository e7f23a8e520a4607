"""Axis-aligned boxes ``cx cy cz dx dy dz``: centre and full size in metres, in the aligned frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

EPSILON = 1e-8
"""Added to the union (m3), as Video-3D-LLM does, so that two empty boxes overlap by 0."""
NOWHERE = (1e9, 1e9, 1e9, 0.0, 0.0, 0.0)
"""In place of a missing box: overlaps nothing."""


def as_boxes(boxes: ArrayLike) -> NDArray[np.float64]:
    """Return boxes as (n, 6) float64; nothing at all is (0, 6).

    Raises:
        ContractError: Another shape, a value that is not finite, or a negative size.
    """
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, 6)
    if array.ndim != 2 or array.shape[1] != 6:
        raise ContractError(f"boxes have shape {array.shape}, expected (n, 6): centre and size")
    bad = [int(i) for i in np.flatnonzero(~is_sound(array))]
    if bad:
        raise ContractError(
            f"boxes {bad} hold NaN, infinity or a negative size; leave them out or mend them"
        )
    return array


def is_sound(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return for each of (n, 6) boxes whether all is finite and no size is negative, (n,)."""
    return np.isfinite(boxes).all(axis=1) & ~(boxes[:, 3:] < 0).any(axis=1)


def iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Return the overlap ``V& / (V1 + V2 - V& + 1e-8)`` of each box of ``a`` with each of ``b``.

    Args:
        a: (n, 6) boxes.
        b: (m, 6) boxes.

    Returns:
        (n, m) in [0, 1).

    Raises:
        ContractError: As `as_boxes`.
    """
    return _overlap(as_boxes(a)[:, None], as_boxes(b)[None])


def iou_of_pairs(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Return the overlap of each of (n, 6) boxes with the one in its place in (n, 6) others, (n,).

    Raises:
        ContractError: As `as_boxes`.
    """
    return _overlap(as_boxes(a), as_boxes(b))


def corners(boxes: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the least and the greatest corner of (..., 6) boxes, (..., 3) each."""
    half = boxes[..., 3:] / 2
    return boxes[..., :3] - half, boxes[..., :3] + half


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the overlap of (..., 6) boxes; leading dimensions broadcast."""
    (low_a, high_a), (low_b, high_b) = corners(a), corners(b)
    sides = np.minimum(high_a, high_b) - np.maximum(low_a, low_b)
    shared = np.prod(np.maximum(sides, 0.0), axis=-1)
    # From the corners, not from the sizes: rounding then equals the public evaluators' at ties.
    volumes = np.prod(high_a - low_a, axis=-1) + np.prod(high_b - low_b, axis=-1)
    return shared / (volumes - shared + EPSILON)
