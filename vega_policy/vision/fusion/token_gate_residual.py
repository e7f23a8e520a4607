"""Token gate inside a residual: a learned share of the gated mix, the rest stays semantic."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vega_policy.vision.fusion.fused import Fused, require_same_shape
from vega_policy.vision.fusion.gate import NormedGate


class TokenGateResidualFusion(NormedGate):
    """``semantic + scale * (gate * semantic + (1 - gate) * prior - semantic)``.

    The rule of VEGA-3D's spatial-reasoning branch, with a learned scalar ``scale``. It starts at
    0.2 there, so with a gate near 0.5 a tenth of ``prior - semantic`` is added from the first step:
    close to the identity, but not the identity.
    """

    def __init__(self, *, width: int, scale: float = 0.2, start: float | None = None) -> None:
        """Build the rule.

        Args:
            width: ``d``.
            scale: First value of the learned scale.
            start: See `start_at`.
        """
        super().__init__(width=width, start=start)
        # One number in one dimension: sharded training has no room for a tensor without any.
        self.scale = nn.Parameter(torch.full((1,), scale))

    def forward(self, semantic: Tensor, prior: Tensor) -> Fused:
        """Move each semantic token towards the mix; see `FusionRule.forward`."""
        require_same_shape(semantic, prior)
        gate = self.gate(*self.normed(semantic, prior))
        mix = (1 - gate) * prior + gate * semantic
        return Fused(tokens=semantic + self.scale * (mix - semantic), gate=gate)
