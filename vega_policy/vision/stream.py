"""The encoder that policy and scene heads share: towers, prior, projectors, fusion.

Shape legend: ``b`` batch, ``v`` views (cameras), ``n`` tokens of one view, ``c`` width of the
prior, ``d`` width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from vega_policy.spec.errors import ContractError
from vega_policy.vision.fusion import Fused, FusionConfig, build_fusion
from vega_policy.vision.fusion.no_fusion import semantic_only
from vega_policy.vision.prior import PriorConfig, WanPrior, ZeroPrior, build_prior
from vega_policy.vision.semantic import SemanticConfig, SemanticTowers

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class ProjectorConfig:
    """How both streams reach the language model's width."""

    semantic_hidden: int = 384
    """First hidden width of the semantic projector (OpenVLA-OFT: four times its input)."""
    prior_hidden: int = 128
    """Hidden width of the prior's projector."""
    prior_norm: Literal["none", "layer"] = "layer"
    """Layer norm in front of the prior's projector; the paper has none."""


@dataclass(frozen=True)
class VisionConfig:
    """Everything between the cameras and the vision tokens."""

    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)


class VisionStream(nn.Module):
    """Pixels of all cameras in, fused vision tokens and their gate out."""

    def __init__(
        self, config: VisionConfig, *, width: int, prior: WanPrior | ZeroPrior | None = None
    ) -> None:
        """Build the stream.

        Args:
            config: Settings.
            width: ``d``.
            prior: A frozen prior; None makes one with random weights.

        Raises:
            ContractError: The prior's grid is not the semantic grid.
        """
        super().__init__()
        grid = config.semantic.grid
        if config.prior.grid != grid:
            raise ContractError(
                f"the prior's grid is {config.prior.grid}, the semantic towers' is {grid}; "
                f"set prior.grid={grid}, features are pooled to it"
            )
        self.config = config
        self.semantic = SemanticTowers(config.semantic, condition_width=width)
        self.semantic_projector = _SemanticProjector(
            self.semantic.width, config.projector.semantic_hidden, width
        )
        self.prior = build_prior(config.prior) if prior is None else prior
        self.prior_projector = _prior_projector(config.prior.width, config.projector, width)
        self.fusion = build_fusion(config.fusion.name, width=width)

    @property
    def n_tokens(self) -> int:
        """Tokens of one view."""
        return self.config.semantic.grid**2

    def prior_features(self, pixels: Tensor, *, keys: Sequence[int] | None = None) -> Tensor:
        """Return the frozen features (b, v, n, c) of pixels (b, v, 3, h, w) in [0, 255].

        Raises:
            ValueError: The prior draws its noise from keys and there are none.
        """
        return self.prior.features(
            pixels.float() / 127.5 - 1.0, keys=self._keys(keys, pixels.shape[0])
        )

    def forward(
        self,
        pixels: Tensor,
        *,
        prior_features: Tensor | None = None,
        keys: Sequence[int] | None = None,
        shut_out_prior: bool = False,
        condition: Tensor | None = None,
    ) -> Fused:
        """Encode and fuse every view; views follow each other along the token axis.

        Args:
            pixels: (b, v, 3, h, w) RGB in [0, 255], uint8 or float.
            prior_features: (b, v, n, c) cached features; None runs the prior.
            keys: One integer per observation for the prior's noise; needed when the prior runs
                with keyed noise, and zeros otherwise.
            shut_out_prior: Clamp the gate to 1, whatever the fusion rule: the tokens are those of
                the semantic stream, and the prior does not run.
            condition: (b, d) what FiLM modulates the towers by; of no use without FiLM.

        Returns:
            Tokens (b, v * n, d) and gate (b, v * n, 1).

        Raises:
            ValueError: Cached features have the wrong shape, or keyed noise has no keys.
        """
        semantic = self.semantic_projector(self.semantic(pixels, condition)).flatten(1, 2)
        if shut_out_prior:
            return semantic_only(semantic)
        features = prior_features
        if features is None:
            features = self.prior_features(pixels, keys=keys)
        expected = (*pixels.shape[:2], self.n_tokens, self.config.prior.width)
        if features.shape != expected:
            raise ValueError(
                f"prior features are {tuple(features.shape)}, expected {expected}; "
                "make the cache anew with this policy's prior"
            )
        dtype = self.semantic_projector.fc1.weight.dtype
        prior = self.prior_projector(features.to(dtype)).flatten(1, 2)
        return self.fusion(semantic, prior)

    def _keys(self, keys: Sequence[int] | None, n: int) -> Sequence[int]:
        if keys is not None:
            return keys
        if self.config.prior.name == "wan" and self.config.prior.noise == "keyed":
            raise ValueError(
                "the prior draws its noise from keys and none were given; pass one per observation"
            )
        return [0] * n


class _SemanticProjector(nn.Module):
    """Three linear layers with exact GELU in between, as in OpenVLA-OFT."""

    def __init__(self, source: int, hidden: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(source, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Project (..., source) to (..., width)."""
        gelu = torch.nn.functional.gelu
        return self.fc3(gelu(self.fc2(gelu(self.fc1(tokens)))))


def _prior_projector(source: int, config: ProjectorConfig, width: int) -> nn.Sequential:
    norm = nn.LayerNorm(source) if config.prior_norm == "layer" else nn.Identity()
    return nn.Sequential(
        norm,
        nn.Linear(source, config.prior_hidden),
        nn.GELU(),
        nn.Linear(config.prior_hidden, width),
    )
