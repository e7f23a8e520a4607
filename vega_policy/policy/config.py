"""The policy's configuration: a tree of frozen dataclasses, and two presets.

`nano` trains on two CPU cores and ships in the repository; `7b` has the shapes of the published
OpenVLA-OFT checkpoints and of Wan2.1-T2V-1.3B. Both are the same classes.
"""

# ruff: noqa: ANN401
from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vega_policy.policy.heads import HeadConfig
from vega_policy.spec import CAMERAS, ActionSpec, ContractError
from vega_policy.spec.names import require_name
from vega_policy.spec.settings import merge
from vega_policy.vision.fusion import FusionConfig
from vega_policy.vision.prior import PriorConfig, WanDims
from vega_policy.vision.semantic import (
    DINO_MEAN,
    DINO_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
    SemanticConfig,
    TowerConfig,
)
from vega_policy.vision.stream import ProjectorConfig, VisionConfig

ImageTransform = Literal["none", "fast", "exact"]


@dataclass(frozen=True)
class LanguageConfig:
    """Sizes of the Llama that reads the sequence."""

    width: int = 128
    depth: int = 4
    heads: int = 2
    mlp_width: int = 352
    vocab_size: int = 512
    rms_norm_eps: float = 1e-6
    """OpenVLA-OFT was trained and evaluated with 1e-6, not with Llama-2's 1e-5."""
    rope_theta: float = 10000.0
    max_positions: int = 2048
    init_std: float = 0.05
    """Deviation of the initial weights; without effect on a loaded checkpoint."""
    slots: Literal["zeros", "learned"] = "learned"
    """What stands where the actions are read. OpenVLA-OFT has zero vectors, which a pretrained
    Llama tells apart by position alone; a small one trained from scratch learns a vector each."""


@dataclass(frozen=True)
class PolicyConfig:
    """A policy, but for its weights, tokenizer and statistics."""

    cameras: tuple[str, ...] = CAMERAS
    """Order of the images in the sequence."""
    image_transform: ImageTransform = "none"
    """``none``: images must already have the model's size. ``fast``: antialiased bicubic resize in
    torch. ``exact``: the image path OpenVLA-OFT was trained with, centre crop included."""
    centre_crop: bool = False
    """``fast`` also crops the centre, for a policy that was trained with random crops."""
    proprio_size: int = 8
    """0: the policy takes no proprioception and has no token for it."""
    normalisation: Literal["bounds_q99", "bounds"] = "bounds_q99"
    """Which statistics map to -1 and 1: the 1st and 99th percentile, or minimum and maximum."""
    action: ActionSpec = field(default_factory=ActionSpec)
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    head: HeadConfig = field(default_factory=HeadConfig)

    @property
    def vision(self) -> VisionConfig:
        """The part of the tree the vision stream is built from."""
        return VisionConfig(
            semantic=self.semantic, prior=self.prior, projector=self.projector, fusion=self.fusion
        )

    @property
    def image_px(self) -> int:
        """Side of the image the model sees."""
        return self.semantic.image_px

    @property
    def n_vision_tokens(self) -> int:
        """Vision tokens of all cameras."""
        return len(self.cameras) * self.semantic.grid**2

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt, BOS included, that the language model's context holds."""
        vision = self.n_vision_tokens * (2 if self.fusion.name == "sequence_concat" else 1)
        extra = bool(self.proprio_size) + (self.head.kind == "diffusion")
        slots = self.action.horizon * self.action.size
        return self.language.max_positions - vision - extra - slots - 1

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary (tuples become lists)."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PolicyConfig:
        """Read a configuration back; absent keys keep the default of ``nano``.

        A key ``preset`` names the preset to start from instead.

        Raises:
            ContractError: A key is unknown or a value has the wrong type; all are listed at once.
        """
        values = dict(values)
        return cls.preset(str(values.pop("preset", "nano"))).changed(values)

    def changed(self, values: Mapping[str, Any]) -> PolicyConfig:
        """Return this configuration with some settings replaced; groups are nested mappings.

        Raises:
            ContractError: A key is unknown or a value has the wrong type; all are listed at once.
        """
        problems: list[str] = []
        config = merge(self, values, problems=problems)
        if problems:
            raise ContractError("policy configuration: " + "; ".join(problems))
        return config

    @classmethod
    def preset(cls, name: str) -> PolicyConfig:
        """Return a preset.

        Raises:
            ContractError: No preset has this name.
        """
        require_name(name, PRESETS, what="policy preset")
        return cls() if name == "nano" else _seven_b()


PRESETS = ("nano", "7b")


def _seven_b() -> PolicyConfig:
    return PolicyConfig(
        image_transform="exact",
        centre_crop=True,
        semantic=SemanticConfig(
            image_px=224,
            patch_px=14,
            dino=TowerConfig(
                width=1024,
                depth=23,
                heads=16,
                mlp_width=4096,
                pixel_mean=DINO_MEAN,
                pixel_std=DINO_STD,
                n_registers=4,
            ),
            siglip=TowerConfig(
                width=1152,
                depth=26,
                heads=16,
                mlp_width=4304,
                pixel_mean=SIGLIP_MEAN,
                pixel_std=SIGLIP_STD,
            ),
        ),
        prior=PriorConfig(
            width=1536,
            image_px=256,
            grid=16,
            block_index=20,
            prompt_tokens=512,
            dims=WanDims(
                heads=12, head_dim=128, n_blocks=30, ffn_width=8960, text_width=4096, vae_width=96
            ),
        ),
        projector=ProjectorConfig(semantic_hidden=8704, prior_hidden=4096, prior_norm="none"),
        language=LanguageConfig(
            width=4096,
            depth=32,
            heads=32,
            mlp_width=11008,
            vocab_size=32064,
            init_std=0.02,
            slots="zeros",
        ),
        head=HeadConfig(width=4096),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in typing.cast("Mapping[str, Any]", value).items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in typing.cast("list[Any]", value)]
    return value
