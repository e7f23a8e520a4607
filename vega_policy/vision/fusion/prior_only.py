"""The prior alone: what it says without the semantic towers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vega_policy.vision.fusion.fused import Fused, FusionRule, require_same_shape

if TYPE_CHECKING:
    from torch import Tensor


class PriorOnlyFusion(FusionRule):
    """``tokens = prior``. The semantic towers still run, and what they return is dropped."""

    def forward(self, semantic: Tensor, prior: Tensor) -> Fused:
        """Return the prior's tokens; see `FusionRule.forward`."""
        require_same_shape(semantic, prior)
        return Fused(tokens=prior, gate=None)
