"""Priors: frozen features of generative backbones, and a control that carries no image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vega_policy.spec.names import require_name
from vega_policy.vision.prior.config import PRIORS, Prior, PriorConfig, WanDims
from vega_policy.vision.prior.layer_norm import LayerNormPrior
from vega_policy.vision.prior.wan import WanPrior
from vega_policy.vision.prior.zero import ZeroPrior

if TYPE_CHECKING:
    from pathlib import Path

AnyPrior = WanPrior | ZeroPrior | LayerNormPrior


def build_prior(config: PriorConfig, *, path: Path | str | None = None, seed: int = 0) -> AnyPrior:
    """Build the prior a configuration names.

    Args:
        config: Settings.
        path: Directory with its weights; None gives random ones.
        seed: Seed of random weights.

    Raises:
        ContractError: No prior has this name.
        CheckpointError: ``path`` does not hold the weights the settings describe.
    """
    if require_name(config.name, PRIORS, what="prior") == "zero":
        return ZeroPrior(config)
    if config.name == "layer_norm":
        return LayerNormPrior(config)
    if path is None:
        return WanPrior.from_config(config, seed=seed)
    return WanPrior.load(path, config)


__all__ = [
    "PRIORS",
    "AnyPrior",
    "LayerNormPrior",
    "Prior",
    "PriorConfig",
    "WanDims",
    "WanPrior",
    "ZeroPrior",
    "build_prior",
]
