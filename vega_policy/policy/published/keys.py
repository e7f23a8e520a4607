"""Where each weight of our model stands in a published OpenVLA-OFT checkpoint.

Read from our side: one published tensor (a fused ``qkv``) can feed several of ours, and what none of
ours asks for is either known to be unused or an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vega_policy.policy.config import PolicyConfig

Take = Literal["whole", "q", "k", "v", "without batch", "behind a zero"]
"""What of a published tensor is taken. ``behind a zero``: timm's DINO has no position for its class
token, transformers' has one, and a zero there gives the same sum."""
Rules = tuple[tuple[str, str, Take], ...]

DINO, SIGLIP = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."
LANGUAGE = "language_model."
ACTION_HEAD, PROPRIO, NOISY_ACTION = "action_head.", "proprio_projector.", "noisy_action_projector."
"""Put in front of the keys of the component files, so that all keys are one name space."""


@dataclass(frozen=True)
class Source:
    """Where a weight comes from."""

    key: str
    take: Take = "whole"

    def of(self, tensor: Tensor) -> Tensor:
        """Return our weight; a view, except behind a zero."""
        match self.take:
            case "whole":
                return tensor
            case "without batch":
                return tensor[0]
            case "behind a zero":
                return torch.cat([torch.zeros_like(tensor[:, :1]), tensor], dim=1)
            case third:
                return tensor.chunk(3)["qkv".index(third)]


_DINO_RULES: Rules = (
    (r"embeddings\.cls_token", "cls_token", "whole"),
    (r"embeddings\.register_tokens", "reg_token", "whole"),
    (r"embeddings\.position_embeddings", "pos_embed", "behind a zero"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1", "whole"),
    (r"encoder\.layer\.(\d+)\.((norm|mlp\.fc)[12]\.\w+)", r"blocks.\1.\2", "whole"),
    (r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.ls\2.scale_factor", "whole"),
    (r"encoder\.layer\.(\d+)\.attention\.q_proj\.(\w+)", r"blocks.\1.attn.qkv.\2", "q"),
    (r"encoder\.layer\.(\d+)\.attention\.k_proj\.(\w+)", r"blocks.\1.attn.qkv.\2", "k"),
    (r"encoder\.layer\.(\d+)\.attention\.v_proj\.(\w+)", r"blocks.\1.attn.qkv.\2", "v"),
    (r"encoder\.layer\.(\d+)\.attention\.o_proj\.(\w+)", r"blocks.\1.attn.proj.\2", "whole"),
)
_SIGLIP_RULES: Rules = (
    (r"embeddings\.position_embedding\.weight", "pos_embed", "without batch"),
    (r"embeddings\.patch_embedding\.(\w+)", r"patch_embed.proj.\1", "whole"),
    (r"encoder\.layers\.(\d+)\.layer_(norm[12]\.\w+)", r"blocks.\1.\2", "whole"),
    (r"encoder\.layers\.(\d+)\.(mlp\.fc[12]\.\w+)", r"blocks.\1.\2", "whole"),
    (r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)", r"blocks.\1.attn.qkv.\2", "q"),
    (r"encoder\.layers\.(\d+)\.self_attn\.k_proj\.(\w+)", r"blocks.\1.attn.qkv.\2", "k"),
    (r"encoder\.layers\.(\d+)\.self_attn\.v_proj\.(\w+)", r"blocks.\1.attn.qkv.\2", "v"),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2", "whole"),
)
_FILM_RULES: Rules = ((r"(\d+\.(scale|shift)\.\w+)", r"blocks.\1", "whole"),)
_RESNET_RULES: Rules = (
    (r"norm_in\.(\w+)", r"layer_norm1.\1", "whole"),
    (r"fc_in\.(\w+)", r"fc1.\1", "whole"),
    (r"blocks\.(\d+)\.norm\.(\w+)", r"mlp_resnet_blocks.\1.ffn.0.\2", "whole"),
    (r"blocks\.(\d+)\.fc\.(\w+)", r"mlp_resnet_blocks.\1.ffn.1.\2", "whole"),
    (r"norm_out\.(\w+)", r"layer_norm2.\1", "whole"),
    (r"fc_out\.(\w+)", r"fc2.\1", "whole"),
)
_SAME: Rules = ((r"(.+)", r"\1", "whole"),)

L1_HEAD, DIFFUSION_HEAD = f"{ACTION_HEAD}model.", f"{ACTION_HEAD}noise_predictor.mlp_resnet."
_PARTS: tuple[tuple[str, str, Rules], ...] = (
    ("vision.semantic.dino.", DINO, _DINO_RULES),
    ("vision.semantic.siglip.", SIGLIP, _SIGLIP_RULES),
    ("vision.semantic.dino_film.", DINO, _FILM_RULES),
    ("vision.semantic.siglip_film.", SIGLIP, _FILM_RULES),
    ("vision.semantic_projector.", "projector.", _SAME),
    ("language.", f"{LANGUAGE}model.", _SAME),
    ("lm_head.", f"{LANGUAGE}lm_head.", _SAME),
    ("proprio.", PROPRIO, _SAME),
    ("head.noise_predictor.", DIFFUSION_HEAD, _RESNET_RULES),
    ("head.noisy_action.", NOISY_ACTION, _SAME),
    ("head.", L1_HEAD, _RESNET_RULES),
)


def source_of(name: str) -> Source:
    """Return where a weight of ours stands in a published checkpoint.

    Args:
        name: Of a parameter of `VegaModel`.

    Raises:
        KeyError: No published checkpoint has anything for it.
    """
    for ours, theirs, rules in _PARTS:
        if name.startswith(ours):
            for pattern, replacement, take in rules:
                found = re.fullmatch(pattern, name.removeprefix(ours))
                if found:
                    return Source(theirs + found.expand(replacement), take)
    raise KeyError(name)


def why_unused(key: str, config: PolicyConfig) -> str | None:
    """Return why a published weight is left out of our model, or None where that is not known."""
    reasons: Sequence[tuple[str, str]] = (
        (f"{DINO}norm.", "the final norm is never applied"),
        (f"{SIGLIP}norm.", "the final norm is never applied"),
        (f"{SIGLIP}attn_pool.", "the pooling head is never used"),
        (f"{DINO}blocks.{config.semantic.dino.depth}.", "the last block is never read"),
        (f"{SIGLIP}blocks.{config.semantic.siglip.depth}.", "the last block is never read"),
        (f"{LANGUAGE}lm_head.", "only a policy with action tokens reads the logits"),
    )
    return next((why for start, why in reasons if key.startswith(start)), None)
