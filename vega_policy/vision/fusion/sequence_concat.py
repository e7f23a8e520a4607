"""Sequence concatenation: the language model reads both streams, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from vega_policy.vision.fusion.fused import Fused, FusionRule, require_same_shape


class SequenceConcatFusion(FusionRule):
    """``tokens = [semantic; prior]`` along the sequence: twice the vision tokens.

    All cameras' semantic tokens come first and keep their positions; what follows the vision tokens
    moves back by ``n`` places.
    """

    def forward(self, semantic: Tensor, prior: Tensor) -> Fused:
        """Return tokens (b, 2n, d); see `FusionRule.forward`."""
        require_same_shape(semantic, prior)
        return Fused(tokens=torch.cat([semantic, prior], dim=1), gate=None)
