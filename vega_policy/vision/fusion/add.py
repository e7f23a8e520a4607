"""Addition: nothing is learned but the prior's projector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vega_policy.vision.fusion.fused import Fused, FusionRule, require_same_shape

if TYPE_CHECKING:
    from torch import Tensor


class AddFusion(FusionRule):
    """``tokens = semantic + prior``."""

    def forward(self, semantic: Tensor, prior: Tensor) -> Fused:
        """Add the streams; see `FusionRule.forward`."""
        require_same_shape(semantic, prior)
        return Fused(tokens=semantic + prior, gate=None)
