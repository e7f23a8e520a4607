"""Channel concatenation: an MLP reads both streams and writes one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vega_policy.vision.fusion.fused import Fused, FusionRule, require_same_shape


class ConcatFusion(FusionRule):
    """``tokens = MLP([LN(prior); LN(semantic)])`` with two linear layers and a GELU.

    The paper says "channel concat + MLP"; its released code has one linear layer. Whatever the
    pretrained projector gave is replaced, so this rule starts far from the identity.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.norm_prior = nn.LayerNorm(width)
        self.norm_semantic = nn.LayerNorm(width)
        self.fc1 = nn.Linear(2 * width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, semantic: Tensor, prior: Tensor) -> Fused:
        """Read each pair of tokens at the same place; see `FusionRule.forward`."""
        require_same_shape(semantic, prior)
        pair = torch.cat([self.norm_prior(prior), self.norm_semantic(semantic)], dim=-1)
        return Fused(tokens=self.fc2(functional.gelu(self.fc1(pair))), gate=None)
