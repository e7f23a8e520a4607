"""Boxes of predictions against those of annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vega_policy.scene.boxes import NOWHERE, iou_of_pairs
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from vega_policy.scene.annotations import Scan2CapRow, ScanReferRow


def overlap_with_truth(
    rows: Sequence[ScanReferRow] | Sequence[Scan2CapRow], boxes: Sequence[ArrayLike | None]
) -> NDArray[np.float64]:
    """Return how much each box overlaps its object, (n,); -1 without a box.

    Raises:
        ContractError: Rows have no ground-truth box.
    """
    unboxed = [f"{row.scene_id}/{row.object_id}" for row in rows if row.box is None]
    if unboxed:
        raise ContractError(
            f"{len(unboxed)} of {len(rows)} rows of the annotation have no ground-truth box (first "
            f"{unboxed[0]}); name the folder of the scans with scans="
        )
    given = np.array([NOWHERE if box is None else box for box in boxes], dtype=np.float64)
    truth = np.array([row.box for row in rows], dtype=np.float64)
    is_given = np.array([box is not None for box in boxes])
    return np.where(is_given, iou_of_pairs(given, truth), -1.0)
