"""Which part of a batch a process holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One of the equal parts of a batch."""

    index: int = 0
    count: int = 1

    def of(self, draws: Tensor) -> Tensor:
        """Return this part of what was drawn for the whole batch, along the first axis."""
        return draws.chunk(self.count)[self.index]


WHOLE = Part()
