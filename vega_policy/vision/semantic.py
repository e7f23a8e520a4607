"""Semantic towers: DINOv2 with registers and SigLIP, read before their final norm.

Shape legend: ``b`` batch, ``v`` views (cameras), ``n`` tokens of one view, ``h``/``w`` pixels,
``c`` channels of both towers together, ``e`` channels of one, ``d`` width of the language model.
"""

# pyright: basic, reportCallIssue=false, reportAttributeAccessIssue=false
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vega_policy.vision.attention import use_our_attention

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class TowerConfig:
    """Size of one vision transformer and the pixel constants it was trained with."""

    width: int
    """Channels of a token."""
    depth: int
    """Blocks that are run; of a published tower this is one less than it has."""
    heads: int
    mlp_width: int
    pixel_mean: tuple[float, float, float]
    """RGB mean subtracted from pixels in [0, 1]."""
    pixel_std: tuple[float, float, float]
    """RGB deviation pixels in [0, 1] are divided by."""
    hidden_act: str = "gelu"
    """``gelu`` is the exact one, which OpenVLA-OFT uses in both towers; transformers' own default
    for SigLIP is the tanh approximation."""
    n_registers: int = 0
    """Register tokens (DINOv2 only)."""
    init_std: float = 0.02
    """Deviation of the initial weights; without effect on a loaded checkpoint."""


DINO_MEAN = (0.484375, 0.455078125, 0.40625)
DINO_STD = (0.228515625, 0.2236328125, 0.224609375)
"""ImageNet constants as OpenVLA-OFT was trained with them: rounded to bfloat16."""
SIGLIP_MEAN = (0.5, 0.5, 0.5)
SIGLIP_STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class SemanticConfig:
    """The two towers and the image they look at."""

    image_px: int = 128
    """Side of the square image."""
    patch_px: int = 16
    """Side of one token's patch."""
    film: bool = False
    """Every block of both towers is modulated by the instruction (FiLM, the OFT+ variant)."""
    film_init: Literal["identity", "torch"] = "identity"
    """Start of the modulation; without effect on a loaded checkpoint. ``identity``: zeros, a fresh
    one changes nothing. ``torch``: the default of linear layers, as in OpenVLA-OFT, which is no
    identity although its comments say so."""
    dino: TowerConfig = field(
        default_factory=lambda: TowerConfig(
            width=96,
            depth=3,
            heads=3,
            mlp_width=384,
            pixel_mean=DINO_MEAN,
            pixel_std=DINO_STD,
            n_registers=4,
            init_std=0.05,
        )
    )
    siglip: TowerConfig = field(
        default_factory=lambda: TowerConfig(
            width=96,
            depth=3,
            heads=3,
            mlp_width=384,
            pixel_mean=SIGLIP_MEAN,
            pixel_std=SIGLIP_STD,
        )
    )

    @property
    def grid(self) -> int:
        """Tokens along one side of an image."""
        return self.image_px // self.patch_px

    @property
    def width(self) -> int:
        """Channels of both towers together."""
        return self.dino.width + self.siglip.width


class SemanticTowers(nn.Module):
    """Turn images into patch tokens: DINO's channels first, then SigLIP's.

    The towers are shared by all cameras, which pass through them as one batch. Features are those
    of the last block that is built, without the final norm: OpenVLA-OFT reads the second-to-last
    block of the published towers, so a tower here has one block less than the published one.
    """

    def __init__(self, config: SemanticConfig, *, condition_width: int | None = None) -> None:
        """Build the towers.

        Args:
            config: Settings.
            condition_width: ``d``; needed with FiLM only.

        Raises:
            ValueError: FiLM is asked for without that width.
        """
        super().__init__()
        self.config = config
        self.dino = _dino(config)
        self.siglip = _siglip(config)
        self.dino_film: nn.ModuleList | None = None
        self.siglip_film: nn.ModuleList | None = None
        if config.film:
            if condition_width is None:
                raise ValueError("FiLM needs the language model's width; pass condition_width")
            self.dino_film, self.siglip_film = (
                nn.ModuleList(
                    _Film(condition_width, tower.width, init=config.film_init)
                    for _ in range(tower.depth)
                )
                for tower in (config.dino, config.siglip)
            )

    @property
    def width(self) -> int:
        """Channels of a returned token."""
        return self.config.width

    @property
    def towers(self) -> tuple[Dinov2WithRegistersModel, SiglipVisionModel]:
        """Both transformers, DINO first."""
        return self.dino, self.siglip

    def normalise(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the float32 input of each tower, DINO's first.

        Args:
            pixels: (..., 3, h, w) RGB in [0, 255], uint8 or float.
        """
        pixels = pixels.float()
        dino, siglip = (_standardise(pixels, t) for t in (self.config.dino, self.config.siglip))
        return dino, siglip

    def forward(self, pixels: Tensor, condition: Tensor | None = None) -> Tensor:
        """Encode every view.

        Args:
            pixels: (b, v, 3, h, w) RGB in [0, 255], uint8 or float, ``h = w = image_px``.
            condition: (b, d) what the blocks are modulated by; with FiLM only.

        Returns:
            (b, v, n, c), tokens in row-major order.

        Raises:
            ValueError: The images do not have the size the towers were built for, or the condition
                is missing.
        """
        b, v = pixels.shape[:2]
        side = self.config.image_px
        if pixels.shape[2:] != (3, side, side):
            raise ValueError(
                f"images are {tuple(pixels.shape[2:])}, the towers expect (3, {side}, {side}); "
                "resize them with the policy's processor"
            )
        for_dino, for_siglip = self.normalise(pixels.flatten(0, 1))
        dtype = self.siglip.embeddings.patch_embedding.weight.dtype
        dino = self.dino.embeddings(for_dino.to(dtype))
        siglip = self.siglip.embeddings(for_siglip.to(dtype))
        if self.dino_film is None or self.siglip_film is None:
            dino = self.dino.encoder(dino).last_hidden_state
            siglip = self.siglip.encoder(inputs_embeds=siglip).last_hidden_state
        else:
            if condition is None:
                raise ValueError("towers with FiLM need the instruction; pass condition")
            dino = _modulate(
                dino, self.dino.encoder.layer, self.dino_film, condition, _modulated_dino_block
            )
            siglip = _modulate(
                siglip,
                self.siglip.encoder.layers,
                self.siglip_film,
                condition,
                _modulated_siglip_block,
            )
        dino = dino[:, 1 + self.config.dino.n_registers :]
        return torch.cat([dino, siglip], dim=-1).unflatten(0, (b, v))


class _ZeroLinear(nn.Linear):
    """A linear layer that starts, whoever makes or resets it, at zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class _Film(nn.Module):
    """Feature-wise linear modulation (arXiv:1709.07871) of one block by the instruction."""

    def __init__(self, source: int, width: int, *, init: str) -> None:
        super().__init__()
        linear = _ZeroLinear if init == "identity" else nn.Linear
        self.scale = linear(source, width)
        self.shift = linear(source, width)

    def forward(self, condition: Tensor, *, views: int) -> tuple[Tensor, Tensor]:
        """Return factor and summand (b * views, 1, e) for (b, d)."""
        condition = condition.to(self.scale.weight.dtype)
        factor, summand = 1 + self.scale(condition), self.shift(condition)
        return (
            factor.repeat_interleave(views, 0).unsqueeze(1),
            summand.repeat_interleave(views, 0).unsqueeze(1),
        )


def _modulate(
    tokens: Tensor,
    blocks: nn.ModuleList,
    films: nn.ModuleList,
    condition: Tensor,
    run: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Run a tower's blocks with FiLM inside them.

    The libraries' blocks have no place for it, so their parts are called one by one.
    """
    views = tokens.shape[0] // condition.shape[0]
    for block, film in zip(blocks, films, strict=True):
        factor, summand = (x.to(tokens.dtype) for x in film(condition, views=views))
        if block.gradient_checkpointing and block.training:
            tokens = checkpoint(run, block, tokens, factor, summand, use_reentrant=False)
        else:
            tokens = run(block, tokens, factor, summand)
    return tokens


def _modulated_dino_block(block: nn.Module, x: Tensor, factor: Tensor, summand: Tensor) -> Tensor:
    x = x + block.layer_scale1(block.attention(block.norm1(x))[0])
    x = x * factor + summand
    return x + block.layer_scale2(block.mlp(block.norm2(x)))


def _modulated_siglip_block(block: nn.Module, x: Tensor, factor: Tensor, summand: Tensor) -> Tensor:
    x = x + block.self_attn(block.layer_norm1(x), attention_mask=None)[0]
    x = x * factor + summand
    return x + block.mlp(block.layer_norm2(x))


def _standardise(pixels: Tensor, tower: TowerConfig) -> Tensor:
    mean, std = (_constant(v, pixels.device) for v in (tower.pixel_mean, tower.pixel_std))
    return (pixels / 255.0 - mean) / std


def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    # Made at every call: as a buffer it would be rounded when the model is cast. Filled on the
    # device: a copy from the host would have the host wait, and cannot be part of a CUDA graph.
    parts = [torch.full((1, 1, 1), v, dtype=torch.float32, device=device) for v in values]
    return torch.cat(parts)


def _dino(config: SemanticConfig) -> Dinov2WithRegistersModel:
    tower = config.dino
    if tower.mlp_width % tower.width:
        raise ValueError(
            f"DINO's mlp_width {tower.mlp_width} is not a multiple of its width {tower.width}; "
            "the architecture only knows whole ratios"
        )
    model = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=tower.width,
            num_hidden_layers=tower.depth,
            num_attention_heads=tower.heads,
            mlp_ratio=tower.mlp_width // tower.width,
            image_size=config.image_px,
            patch_size=config.patch_px,
            num_register_tokens=tower.n_registers,
            hidden_act=tower.hidden_act,
            layer_norm_eps=1e-6,
            initializer_range=tower.init_std,
            attn_implementation=use_our_attention(),
        )
    )
    # Dead weight here: the norm is never applied, the mask token never used.
    model.layernorm = nn.Identity()
    model.embeddings.register_parameter("mask_token", None)
    # Equal registers would stay equal for ever.
    nn.init.normal_(model.embeddings.register_tokens, std=tower.init_std)
    return model


def _siglip(config: SemanticConfig) -> SiglipVisionModel:
    tower = config.siglip
    model = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=tower.width,
            num_hidden_layers=tower.depth,
            num_attention_heads=tower.heads,
            intermediate_size=tower.mlp_width,
            image_size=config.image_px,
            patch_size=config.patch_px,
            hidden_act=tower.hidden_act,
            layer_norm_eps=1e-6,
            vision_use_head=False,
            attn_implementation=use_our_attention(),
        )
    )
    model.post_layernorm = nn.Identity()
    return model
