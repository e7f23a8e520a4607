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
from vega_policy.vision.fusion import Fused, FusionConfig, SequenceConcatFusion, build_fusion
from vega_policy.vision.prior import AnyPrior, LayerNormPrior, PriorConfig, build_prior
from vega_policy.vision.semantic import SemanticConfig, SemanticTowers

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class ProjectorConfig:
    """How both streams reach the language model's width."""

    semantic_hidden: int = 384
    """First hidden width of the semantic projector (OpenVLA-OFT: four times its input)."""
    prior_kind: Literal["mlp", "linear"] = "mlp"
    """``mlp``: two linear layers with a GELU, as in the paper. ``linear``: one layer."""
    prior_hidden: int = 128
    """Hidden width of the prior's projector (``mlp`` only)."""
    prior_norm: Literal["none", "layer"] = "layer"
    """Layer norm in front of the prior's projector; the paper has none."""


@dataclass(frozen=True)
class VisionConfig:
    """Everything between the cameras and the vision tokens."""

    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)


class PriorBranch(nn.Module):
    """Prior, its projector and the fusion rule: what semantic tokens, whoever made them, pass through.

    `VisionStream` puts it behind our own towers, the scene heads behind those of their backbones.
    """

    def __init__(
        self, config: VisionConfig, *, width: int, grid: int, prior: AnyPrior | None = None
    ) -> None:
        """Build the branch.

        Args:
            config: Settings; those of the semantic towers are not looked at.
            width: ``d``.
            grid: Semantic tokens along one side of a view.
            prior: A frozen prior; None makes one with random weights. Fusion ``none`` has none,
                whatever is given.

        Raises:
            ContractError: The prior's grid is not the semantic grid.
        """
        super().__init__()
        self.width, self.grid = width, grid
        self.set_branch(config, prior=prior)

    def set_branch(self, config: VisionConfig, *, prior: AnyPrior | None = None) -> None:
        """Give this stream another prior, projector and fusion rule; the last two start untrained.

        Args:
            config: Settings; those of the towers and of their projector are what was built.
            prior: As in the constructor.

        Raises:
            ContractError: The prior does not fit the towers.
        """
        self.config = config
        self.prior: AnyPrior | None = None
        self.prior_projector: nn.Sequential | None = None
        if config.fusion.uses_prior:
            self._require_fit(config)
            self.prior = build_prior(config.prior) if prior is None else prior
            self.prior_projector = _prior_projector(
                config.prior.width, config.projector, self.width
            )
        self.fusion = build_fusion(config.fusion, width=self.width, grid=self.grid)

    def _require_fit(self, config: VisionConfig) -> None:
        if config.prior.grid != self.grid:
            raise ContractError(
                f"the prior's grid is {config.prior.grid}, the semantic towers' is "
                f"{self.grid}; set prior.grid={self.grid}, features are pooled "
                "to it"
            )

    @property
    def n_tokens(self) -> int:
        """Tokens of one view."""
        return self.grid**2

    def prior_features(self, pixels: Tensor, *, keys: Sequence[int] | None = None) -> Tensor | None:
        """Return the frozen features (b, v, n, c) of pixels (b, v, 3, h, w) in [0, 255].

        None where frames have none: without a prior, or with the control that reads semantic tokens.

        Raises:
            ValueError: The prior draws its noise from keys and there are none.
        """
        if self.prior is None or isinstance(self.prior, LayerNormPrior):
            return None
        return self.prior.features(
            pixels.float() / 127.5 - 1.0, keys=self._keys(keys, pixels.shape[0])
        )

    def fuse(
        self,
        semantic: Tensor,
        pixels: Tensor,
        read: Tensor,
        *,
        prior_features: Tensor | None = None,
        keys: Sequence[int] | None = None,
        shut_out_prior: bool | Tensor = False,
    ) -> Fused:
        """Fuse projected semantic tokens with the prior's features of the same frames.

        Args:
            semantic: (b, v * n, d), view by view, row-major.
            pixels: (b, v, 3, h, w) RGB in [0, 255], uint8 or float.
            read: (b, v, n, e) the towers' own tokens, for the control that repeats them.
            prior_features: See `VisionStream.forward`; so are the arguments without a line here.
            keys: See there.
            shut_out_prior: See there.

        Raises:
            ContractError: Single observations are to lose tokens that others of the batch have.
            ValueError: Cached features have the wrong shape, or keyed noise has no keys.
        """
        if self.prior_projector is None or shut_out_prior is True:
            gate = semantic.new_ones(*semantic.shape[:-1], 1) if self.fusion.has_gate else None
            return Fused(tokens=semantic, gate=gate)
        features = self._features(pixels, read, prior_features, keys)
        dtype = next(self.prior_projector.parameters()).dtype
        fused = self.fusion(semantic, self.prior_projector(features.to(dtype)).flatten(1, 2))
        if isinstance(shut_out_prior, Tensor):
            return self._without_prior(fused, semantic, shut_out_prior)
        return fused

    def _features(
        self,
        pixels: Tensor,
        read: Tensor,
        features: Tensor | None,
        keys: Sequence[int] | None,
    ) -> Tensor:
        """Return checked features (b, v, n, c), given, computed or made of the towers' tokens."""
        if isinstance(self.prior, LayerNormPrior):
            return self.prior.from_semantic(read)
        if features is None:
            features = self.prior_features(pixels, keys=keys)
        expected = (*pixels.shape[:2], self.n_tokens, self.config.prior.width)
        if features is None or features.shape != expected:
            found = None if features is None else tuple(features.shape)
            raise ValueError(
                f"prior features are {found}, expected {expected}; "
                "make the cache anew with this policy's prior"
            )
        return features

    def _without_prior(self, fused: Fused, semantic: Tensor, shut_out: Tensor) -> Fused:
        """Put the semantic tokens (b, v * n, d) back where ``shut_out`` (b,) is True."""
        if isinstance(self.fusion, SequenceConcatFusion):
            raise ContractError(
                "fusion sequence_concat gives every observation twice the tokens, so the prior "
                "cannot be left out of some of a batch; switch prior dropout off for this rule"
            )
        out = shut_out.to(semantic.device).view(-1, 1, 1)
        tokens = torch.where(out, semantic.to(fused.tokens.dtype), fused.tokens)
        gate = None if fused.gate is None else fused.gate.masked_fill(out, 1.0)
        return Fused(tokens=tokens, gate=gate)

    def _keys(self, keys: Sequence[int] | None, n: int) -> Sequence[int]:
        if keys is not None:
            return keys
        if self.config.prior.name != "zero" and self.config.prior.noise == "keyed":
            raise ValueError(
                "the prior draws its noise from keys and none were given; pass one per observation"
            )
        return [0] * n


class VisionStream(PriorBranch):
    """Pixels of all cameras in, fused vision tokens and their gate out."""

    def __init__(self, config: VisionConfig, *, width: int, prior: AnyPrior | None = None) -> None:
        """Build the stream.

        Args:
            config: Settings.
            width: ``d``.
            prior: A frozen prior; None makes one with random weights. Fusion ``none`` has none,
                whatever is given.

        Raises:
            ContractError: The prior's grid is not the semantic grid.
        """
        nn.Module.__init__(self)
        self.width, self.grid = width, config.semantic.grid
        self.semantic = SemanticTowers(config.semantic, condition_width=width)
        self.semantic_projector = _SemanticProjector(
            self.semantic.width, config.projector.semantic_hidden, width
        )
        self.set_branch(config, prior=prior)

    def widen_projector(self, units: int, *, seed: int) -> None:
        """Add hidden units to the semantic projector that answer nothing until they are trained.

        Args:
            units: How many; ``config`` counts them already.
            seed: Of what they read; global random state is left as it was.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.semantic_projector.widen(units)

    def _require_fit(self, config: VisionConfig) -> None:
        super()._require_fit(config)
        if config.prior.name == "layer_norm" and config.prior.width != self.semantic.width:
            raise ContractError(
                f"prior layer_norm has width {config.prior.width}, the semantic tokens have "
                f"{self.semantic.width}; set prior.width={self.semantic.width}"
            )

    def forward(
        self,
        pixels: Tensor,
        *,
        prior_features: Tensor | None = None,
        keys: Sequence[int] | None = None,
        shut_out_prior: bool | Tensor = False,
        condition: Tensor | None = None,
    ) -> Fused:
        """Encode and fuse every view; views follow each other along the token axis.

        Args:
            pixels: (b, v, 3, h, w) RGB in [0, 255], uint8 or float.
            prior_features: (b, v, n, c) cached features; None runs the prior.
            keys: One integer per observation for the prior's noise; needed when the prior runs
                with keyed noise, and zeros otherwise.
            shut_out_prior: Return the semantic tokens alone, whatever the fusion rule, with a gate
                of 1 where the rule has one; the prior does not run. A (b,) bool tensor shuts it out
                of single observations, see `dropped_priors`.
            condition: (b, d) what FiLM modulates the towers by; of no use without FiLM.

        Returns:
            Tokens (b, v * n, d), twice as many with ``sequence_concat``, and gate (b, v * n, 1) or
            None.

        Raises:
            ContractError: Single observations are to lose tokens that others of the batch have.
            ValueError: Cached features have the wrong shape, or keyed noise has no keys.
        """
        read = self.semantic(pixels, condition)
        return self.fuse(
            self.semantic_projector(read).flatten(1, 2),
            pixels,
            read,
            prior_features=prior_features,
            keys=keys,
            shut_out_prior=shut_out_prior,
        )


class _SemanticProjector(nn.Module):
    """Three linear layers with exact GELU in between, as in OpenVLA-OFT."""

    def __init__(self, source: int, hidden: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(source, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.fc3 = nn.Linear(width, width)

    def widen(self, units: int) -> None:
        """Add hidden units that nothing is read from yet; the new layers share no weight with the old."""
        old1, old2 = self.fc1, self.fc2
        if not old1.weight.is_floating_point():
            raise ContractError("the semantic projector is quantised; widen it before that")
        made = {"device": old1.weight.device, "dtype": old1.weight.dtype}
        self.fc1 = nn.Linear(old1.in_features, old1.out_features + units, **made)
        self.fc2 = nn.Linear(old2.in_features + units, old2.out_features, **made)
        with torch.no_grad():
            self.fc1.weight[: old1.out_features] = old1.weight
            self.fc1.bias[: old1.out_features] = old1.bias
            self.fc2.weight[:, : old2.in_features] = old2.weight
            self.fc2.weight[:, old2.in_features :] = 0.0
            self.fc2.bias.copy_(old2.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Project (..., source) to (..., width)."""
        gelu = torch.nn.functional.gelu
        return self.fc3(gelu(self.fc2(gelu(self.fc1(tokens)))))


def _prior_projector(source: int, config: ProjectorConfig, width: int) -> nn.Sequential:
    norm = nn.LayerNorm(source) if config.prior_norm == "layer" else nn.Identity()
    if config.prior_kind == "linear":
        return nn.Sequential(norm, nn.Linear(source, width))
    return nn.Sequential(
        norm,
        nn.Linear(source, config.prior_hidden),
        nn.GELU(),
        nn.Linear(config.prior_hidden, width),
    )


def branch_size(config: VisionConfig, *, width: int) -> dict[str, int]:
    """Count the trainable numbers that prior and fusion add, without making any.

    Meant for arms of equal size: choose ``projector.prior_hidden`` until the totals agree.

    Args:
        config: Settings.
        width: ``d``.

    Returns:
        ``prior_projector``, ``fusion`` and their ``total``.
    """
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "fusion": build_fusion(config.fusion, width=width, grid=config.semantic.grid)
        }
        if config.fusion.uses_prior:
            parts["prior_projector"] = _prior_projector(config.prior.width, config.projector, width)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    sizes.setdefault("prior_projector", 0)
    return {**sizes, "total": sum(sizes.values())}
