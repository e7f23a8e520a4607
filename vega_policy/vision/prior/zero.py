"""A control that carries no image: whatever the policy gains from it is not the prior's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vega_policy.vision.prior.frozen import WeightlessPrior

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class ZeroPrior(WeightlessPrior):
    """Zeros of the shape a prior would return."""

    def encode(self, frames: Tensor, *, keys: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:  # noqa: ARG002
        """Return zeros; see `FrozenPrior.encode`."""
        b, v = frames.shape[:2]
        side = self.config.grid
        return frames.new_zeros(b, v, side * side, self.width), (side, side)
