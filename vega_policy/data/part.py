"""Which part of a batch a process holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vega_policy.spec import ContractError

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


def part_size(batch_size: int, *, count: int) -> int:
    """Return how many samples of a batch each of ``count`` processes holds.

    Raises:
        ContractError: The batch cannot be divided equally.
    """
    if batch_size % count:
        raise ContractError(
            f"a batch of {batch_size} cannot be divided equally among {count} processes; set batch_size "
            f"to a multiple of {count}"
        )
    return batch_size // count
