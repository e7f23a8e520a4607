"""Residual fusion: a gated share of the prior is added, the semantic tokens stay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vega_policy.vision.fusion.fused import Fused, FusionRule, require_same_shape
from vega_policy.vision.fusion.gate import start_at


class ResidualZeroFusion(FusionRule):
    """Return ``semantic + (1 - gate) * out(prior)`` with ``gate = sigmoid(W [prior; semantic] + c)``.

    ``out`` starts at zero, so a new module returns the semantic tokens bit for bit (for finite
    priors) and a policy that gets one acts as before until training moves ``out``. The price: in
    the first step only ``out`` receives a gradient; ``score`` and the prior's projector follow in
    the second. Differs from Eq. 7-8 of VEGA-3D (arXiv:2603.19235v2) in two points: no layer norms
    before the score, and a sum instead of the convex mix, so the semantic tokens keep their scale.
    """

    has_gate = True

    def __init__(self, *, width: int, start: float | None = None) -> None:
        """Build the rule.

        Args:
            width: ``d``.
            start: See `start_at`.
        """
        super().__init__()
        self.score = nn.Linear(2 * width, 1)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)
        start_at(self.score, start)

    def forward(self, semantic: Tensor, prior: Tensor) -> Fused:
        """Add each prior token to the semantic one at the same place; see `FusionRule.forward`."""
        require_same_shape(semantic, prior)
        gate = torch.sigmoid(self.score(torch.cat([prior, semantic], dim=-1)))
        return Fused(tokens=semantic + (1 - gate) * self.out(prior), gate=gate)
