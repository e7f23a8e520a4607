"""The baseline: there is no prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vega_policy.vision.fusion.fused import Fused, FusionRule

if TYPE_CHECKING:
    from torch import Tensor


class NoFusion(FusionRule):
    """``tokens = semantic``. A policy with this rule builds, loads, runs and saves no prior."""

    def forward(self, semantic: Tensor, prior: Tensor | None = None) -> Fused:  # noqa: ARG002
        """Return ``semantic`` (b, n, d) as it is."""
        return Fused(tokens=semantic, gate=None)
