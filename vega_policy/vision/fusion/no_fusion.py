"""The baseline: the prior is ignored."""

from __future__ import annotations

from torch import Tensor, nn

from vega_policy.vision.fusion.fused import Fused


class NoFusion(nn.Module):
    """Return the semantic tokens; the gate is 1 everywhere and nothing is learned."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, semantic: Tensor, prior: Tensor) -> Fused:  # noqa: ARG002
        """Return ``semantic`` (b, n, d) as it is."""
        return semantic_only(semantic)


def semantic_only(semantic: Tensor) -> Fused:
    """Return ``semantic`` (b, n, d) with a gate of 1 everywhere."""
    return Fused(tokens=semantic, gate=semantic.new_ones(*semantic.shape[:-1], 1))
