"""Fusion rules: two token streams in, one out, with the gate that says which was trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vega_policy.spec.names import require_name
from vega_policy.vision.fusion.fused import Fused
from vega_policy.vision.fusion.no_fusion import NoFusion
from vega_policy.vision.fusion.residual_zero import ResidualZeroFusion
from vega_policy.vision.fusion.token_gate import TokenGateFusion

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

_RULES: dict[str, Callable[..., nn.Module]] = {
    "token_gate": TokenGateFusion,
    "residual_zero": ResidualZeroFusion,
    "none": NoFusion,
}
FUSIONS = tuple(_RULES)


@dataclass(frozen=True)
class FusionConfig:
    """Which rule joins the streams."""

    name: str = "token_gate"
    """One of `FUSIONS`."""


def build_fusion(name: str, *, width: int) -> nn.Module:
    """Build a fusion rule by name.

    Args:
        name: One of `FUSIONS`.
        width: Width of both streams.

    Raises:
        ContractError: No rule has this name.
    """
    return _RULES[require_name(name, FUSIONS, what="fusion")](width=width)


__all__ = [
    "FUSIONS",
    "Fused",
    "FusionConfig",
    "NoFusion",
    "ResidualZeroFusion",
    "TokenGateFusion",
    "build_fusion",
]
