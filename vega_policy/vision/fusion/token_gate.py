"""Token gate: the paper's convex mix of both streams, one scalar per token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vega_policy.vision.fusion.fused import Fused, require_same_shape
from vega_policy.vision.fusion.gate import NormedGate

if TYPE_CHECKING:
    from torch import Tensor


class TokenGateFusion(NormedGate):
    """Mix both streams as in Eq. 7-8 of VEGA-3D (arXiv:2603.19235v2).

    ``tokens = (1 - gate) * prior + gate * semantic``. The layer norms feed the score only; the raw
    projections are mixed. The paper's released code mixes the normalised ones, see
    `TokenGateNormedFusion`. A fresh gate is near 0.5, so it is *not* the identity: see
    `ResidualZeroFusion` for that.
    """

    def forward(self, semantic: Tensor, prior: Tensor) -> Fused:
        """Mix each pair of tokens at the same place; see `FusionRule.forward`."""
        require_same_shape(semantic, prior)
        gate = self.gate(*self.normed(semantic, prior))
        return Fused(tokens=(1 - gate) * prior + gate * semantic, gate=gate)
