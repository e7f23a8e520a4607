"""Priors: frozen features of generative backbones, their rivals, and controls without an image."""

from __future__ import annotations

from pathlib import Path

from vega_policy.spec.names import require_name
from vega_policy.vision.prior.bank import load_bank, save_bank
from vega_policy.vision.prior.config import (
    PRIORS,
    Prior,
    PriorConfig,
    UNetDims,
    VaeDims,
    VitDims,
    WanDims,
)
from vega_policy.vision.prior.dinov3 import Dinov3Prior
from vega_policy.vision.prior.frozen import FrozenPrior, WeightlessPrior
from vega_policy.vision.prior.image_vae import VaePrior
from vega_policy.vision.prior.layer_norm import LayerNormPrior
from vega_policy.vision.prior.noise import NoisePrior
from vega_policy.vision.prior.precomputed import PrecomputedPrior
from vega_policy.vision.prior.sd21 import Sd21Prior
from vega_policy.vision.prior.svd import SvdPrior
from vega_policy.vision.prior.vace import VacePrior
from vega_policy.vision.prior.vjepa2 import VJepa2Prior
from vega_policy.vision.prior.wan import WanPrior
from vega_policy.vision.prior.zero import ZeroPrior

AnyPrior = FrozenPrior
"""What `build_prior` returns: every prior, weightless controls included, has this base."""

_KINDS: dict[str, type[FrozenPrior]] = {
    "wan": WanPrior,
    "vace": VacePrior,
    "sd21": Sd21Prior,
    "svd": SvdPrior,
    "vae": VaePrior,
    "dinov3": Dinov3Prior,
    "vjepa2": VJepa2Prior,
    "precomputed": PrecomputedPrior,
    "noise": NoisePrior,
    "layer_norm": LayerNormPrior,
    "zero": ZeroPrior,
}


ASSETS = Path(__file__).parents[2] / "assets"
"""Where the priors that come with the package lie."""
WEIGHTLESS = frozenset(n for n, kind in _KINDS.items() if issubclass(kind, WeightlessPrior))
"""Priors without a directory of weights."""


def build_prior(config: PriorConfig, *, path: Path | str | None = None, seed: int = 0) -> AnyPrior:
    """Build the prior a configuration names.

    Args:
        config: Settings.
        path: Directory (or hub id, for what the hub has) with its weights, or the name of a prior that
            comes with the package (``nano-prior``); None gives random ones. A prior without weights
            does not look at it.
        seed: Seed of random weights.

    Raises:
        ContractError: No prior has this name, or its settings contradict each other.
        CheckpointError: ``path`` does not hold the weights the settings describe.
    """
    kind = _KINDS[require_name(config.name, PRIORS, what="prior")]
    if path is None:
        return kind.from_config(config, seed=seed)
    if not Path(path).exists() and (ASSETS / path).is_dir():
        path = ASSETS / path
    prior = kind.load(path, config)
    if config.sees == "other":
        prior.bank = load_bank(path)
    return prior


def save_prior(prior: AnyPrior, path: Path | str) -> None:
    """Write what `build_prior` reads back."""
    prior.save(path)
    if prior.bank is not None:
        save_bank(prior.bank, path)


__all__ = [
    "PRIORS",
    "WEIGHTLESS",
    "AnyPrior",
    "Dinov3Prior",
    "FrozenPrior",
    "LayerNormPrior",
    "NoisePrior",
    "PrecomputedPrior",
    "Prior",
    "PriorConfig",
    "Sd21Prior",
    "SvdPrior",
    "UNetDims",
    "VJepa2Prior",
    "VacePrior",
    "VaeDims",
    "VaePrior",
    "VitDims",
    "WanDims",
    "WanPrior",
    "WeightlessPrior",
    "ZeroPrior",
    "build_prior",
    "save_prior",
]
