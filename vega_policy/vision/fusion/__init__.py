"""Fusion rules: two token streams in, one out, with the gate that says which was trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vega_policy.spec.names import require_name
from vega_policy.vision.fusion.add import AddFusion
from vega_policy.vision.fusion.channel_gate import ChannelGateFusion
from vega_policy.vision.fusion.concat import ConcatFusion
from vega_policy.vision.fusion.cross_attention import CrossAttentionFusion
from vega_policy.vision.fusion.dropout import dropped_priors
from vega_policy.vision.fusion.fused import Fused, FusionRule
from vega_policy.vision.fusion.no_fusion import NoFusion
from vega_policy.vision.fusion.prior_only import PriorOnlyFusion
from vega_policy.vision.fusion.residual_zero import ResidualZeroFusion
from vega_policy.vision.fusion.sequence_concat import SequenceConcatFusion
from vega_policy.vision.fusion.token_gate import TokenGateFusion
from vega_policy.vision.fusion.token_gate_normed import TokenGateNormedFusion
from vega_policy.vision.fusion.token_gate_residual import TokenGateResidualFusion

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class FusionConfig:
    """Which rule joins the streams."""

    name: str = "token_gate"
    """One of `FUSIONS`; ``none`` is a policy without a prior."""
    gate_start: float | None = None
    """Weight of the semantic stream that a new gate gives every token (gated rules only); None is
    torch's own start, near 0.5. A training run may close a gate early, and this is the dial for it."""
    residual_scale: float = 0.2
    """First value of the learned scale (``token_gate_residual`` only)."""
    layers: int = 1
    """Blocks (``cross_attention`` only)."""

    @property
    def uses_prior(self) -> bool:
        """False where no prior is to be built, loaded, run or saved."""
        return self.name != "none"


_RULES: dict[str, Callable[[FusionConfig, int, int], FusionRule]] = {
    "token_gate": lambda c, width, _: TokenGateFusion(width=width, start=c.gate_start),
    "token_gate_normed": lambda c, width, _: TokenGateNormedFusion(width=width, start=c.gate_start),
    "token_gate_residual": lambda c, width, _: TokenGateResidualFusion(
        width=width, scale=c.residual_scale, start=c.gate_start
    ),
    "residual_zero": lambda c, width, _: ResidualZeroFusion(width=width, start=c.gate_start),
    "channel_gate": lambda c, width, _: ChannelGateFusion(width=width, start=c.gate_start),
    "add": lambda *_: AddFusion(),
    "concat": lambda _, width, __: ConcatFusion(width=width),
    "sequence_concat": lambda *_: SequenceConcatFusion(),
    "cross_attention": lambda c, width, grid: CrossAttentionFusion(
        width=width, grid=grid, n_layers=c.layers
    ),
    "prior_only": lambda *_: PriorOnlyFusion(),
    "none": lambda *_: NoFusion(),
}
FUSIONS = tuple(_RULES)


def build_fusion(config: FusionConfig, *, width: int, grid: int) -> FusionRule:
    """Build the fusion rule a configuration names.

    Args:
        config: Settings.
        width: Width of both streams.
        grid: Tokens along one side of a view.

    Raises:
        ContractError: No rule has this name, or a setting does not fit the rule.
    """
    return _RULES[require_name(config.name, FUSIONS, what="fusion")](config, width, grid)


__all__ = [
    "FUSIONS",
    "AddFusion",
    "ChannelGateFusion",
    "ConcatFusion",
    "CrossAttentionFusion",
    "Fused",
    "FusionConfig",
    "FusionRule",
    "NoFusion",
    "PriorOnlyFusion",
    "ResidualZeroFusion",
    "SequenceConcatFusion",
    "TokenGateFusion",
    "TokenGateNormedFusion",
    "TokenGateResidualFusion",
    "build_fusion",
    "dropped_priors",
]
