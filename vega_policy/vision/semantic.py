"""Semantic towers: DINOv2 with registers and SigLIP, read before their final norm.

Shape legend: ``b`` batch, ``v`` views (cameras), ``n`` tokens of one view, ``h``/``w`` pixels,
``c`` channels of both towers together.
"""

# pyright: basic, reportCallIssue=false, reportAttributeAccessIssue=false
from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vega_policy.vision.attention import use_our_attention


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

    def __init__(self, config: SemanticConfig) -> None:
        super().__init__()
        self.config = config
        self.dino = _dino(config)
        self.siglip = _siglip(config)

    @property
    def width(self) -> int:
        """Channels of a returned token."""
        return self.config.width

    def normalise(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the float32 input of each tower, DINO's first.

        Args:
            pixels: (..., 3, h, w) RGB in [0, 255], uint8 or float.
        """
        pixels = pixels.float()
        dino, siglip = (_standardise(pixels, t) for t in (self.config.dino, self.config.siglip))
        return dino, siglip

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode every view.

        Args:
            pixels: (b, v, 3, h, w) RGB in [0, 255], uint8 or float, ``h = w = image_px``.

        Returns:
            (b, v, n, c), tokens in row-major order.

        Raises:
            ValueError: The images do not have the size the towers were built for.
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
        dino = self.dino.encoder(self.dino.embeddings(for_dino.to(dtype))).last_hidden_state
        dino = dino[:, 1 + self.config.dino.n_registers :]
        siglip = self.siglip.encoder(
            inputs_embeds=self.siglip.embeddings(for_siglip.to(dtype))
        ).last_hidden_state
        tokens = torch.cat([dino, siglip], dim=-1)
        return tokens.unflatten(0, (b, v))


def _standardise(pixels: Tensor, tower: TowerConfig) -> Tensor:
    # Made at every call: as buffers the constants would be rounded when the model is cast.
    mean = torch.tensor(tower.pixel_mean, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(tower.pixel_std, device=pixels.device).view(3, 1, 1)
    return (pixels / 255.0 - mean) / std


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
