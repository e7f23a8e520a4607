"""Token gate over normalised streams: what the paper's released code trains on ScanNet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vega_policy.vision.fusion.fused import Fused, require_same_shape
from vega_policy.vision.fusion.gate import NormedGate

if TYPE_CHECKING:
    from torch import Tensor


class TokenGateNormedFusion(NormedGate):
    """``tokens = (1 - gate) * LN(prior) + gate * LN(semantic)``.

    The rule of VEGA-3D's main branch, not of its Eq. 8: the language model reads tokens of the
    layer norms' scale, which is not the one a pretrained projector gives.
    """

    def forward(self, semantic: Tensor, prior: Tensor) -> Fused:
        """Mix each pair of tokens at the same place; see `FusionRule.forward`."""
        require_same_shape(semantic, prior)
        semantic, prior = self.normed(semantic, prior)
        gate = self.gate(semantic, prior)
        return Fused(tokens=(1 - gate) * prior + gate * semantic, gate=gate)
