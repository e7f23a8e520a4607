"""Token gate: the paper's convex mix of both streams, one scalar per token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vega_policy.vision.fusion.fused import Fused, require_same_shape


class TokenGateFusion(nn.Module):
    """Mix both streams as in Eq. 7-8 of VEGA-3D (arXiv:2603.19235v2).

    ``gate = sigmoid(w . [LN(prior); LN(semantic)] + b)`` and
    ``tokens = (1 - gate) * prior + gate * semantic``. The layer norms feed the score only; the raw
    projections are mixed. The paper's released code differs in both points: it concatenates the
    semantic stream first and mixes the normalised ones. The paper names no epsilon; it is torch's
    1e-5. A fresh gate is near 0.5, so it is *not* the identity: see `ResidualZeroFusion` for that.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.norm_prior = nn.LayerNorm(width)
        self.norm_semantic = nn.LayerNorm(width)
        self.score = nn.Linear(2 * width, 1)

    def forward(self, semantic: Tensor, prior: Tensor) -> Fused:
        """Mix each pair of tokens at the same place.

        Args:
            semantic: (b, n, d) projected tokens of the semantic towers.
            prior: (b, n, d) projected features of the prior.

        Raises:
            ValueError: The two streams differ in shape.
        """
        require_same_shape(semantic, prior)
        streams = torch.cat([self.norm_prior(prior), self.norm_semantic(semantic)], dim=-1)
        gate = torch.sigmoid(self.score(streams))
        return Fused(tokens=(1 - gate) * prior + gate * semantic, gate=gate)
