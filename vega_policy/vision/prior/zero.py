"""A control that carries no image: whatever the policy gains from it is not the prior's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vega_policy.vision.prior.config import PriorConfig


class ZeroPrior(nn.Module):
    """Zeros of the shape a prior would return."""

    reads_semantic = False

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def width(self) -> int:
        """Channels of a feature."""
        return self.config.width

    def features(self, frames: Tensor, *, keys: Sequence[int]) -> Tensor:  # noqa: ARG002
        """Return zeros (b, v, n, c) for frames (b, v, 3, h, w)."""
        b, v = frames.shape[:2]
        return frames.new_zeros(b, v, self.config.grid**2, self.width)
