"""What is scored: a map of features for every view of a scan.

Shape legend: ``v`` views, ``r, k`` rows and columns of the token grid, ``c`` channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vega_policy.scene.scan import Scan

Floats = NDArray[np.floating[Any]]
Window = tuple[float, float, float, float]
"""Top, left, bottom and right of a part of the image, as shares of its height and width."""
WHOLE: Window = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Features of all views, on a grid of equal cells."""

    tokens: Floats
    """(v, r, k, c)."""
    window: Window = WHOLE
    """The part of the image that the grid covers: a prior that crops does not see the rest."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        _, rows, columns, _ = self.tokens.shape
        return rows, columns


class Source(Protocol):
    """Anything that gives features: a prior, a policy's towers, a control."""

    @property
    def name(self) -> str:
        """What stands in the table."""
        ...

    def __call__(self, scan: Scan) -> FeatureMap:
        """Return the features of every frame of the scan, in order."""
        ...
