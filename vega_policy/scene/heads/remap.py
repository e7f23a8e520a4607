"""LLaVA-Video's original files, read into the Hugging Face class of the same architecture.

VEGA-3D's and Video-3D-LLM's released code writes the same layout with more weights in it: prior
projector, token gate and grounding head. These are read too.

``lmms-lab/LLaVA-Video-7B-Qwen2`` names its weights after the llava code; only names differ. Its SigLIP
has no last block: the file holds 26 of 27. What a file may hold and nobody runs (the 27th block, the
pooling head) is left out.
"""

# pyright: reportUnknownMemberType=false
# ruff: noqa: ANN401
from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from vega_policy.spec import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

T = TypeVar("T")

_TOWER = "model.vision_tower.vision_tower.vision_model."
_PREFIXES = (
    (_TOWER, "model.vision_tower."),
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.image_newline", "model.image_newline"),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
    ("lm_head.", "lm_head."),
)
"""Original name, ours. The first one that fits counts."""
_HEADS = (
    ("model.generative_projector.0.", "branch.prior_projector.1."),
    ("model.generative_projector.2.", "branch.prior_projector.3."),
    ("model.feature_fusion.norm1.", "branch.fusion.norm_semantic."),
    ("model.feature_fusion.norm2.", "branch.fusion.norm_prior."),
    ("model.feature_fusion.gate_projection.0.", "branch.fusion.score."),
    ("ground_head_zero_target", "head.zero_target"),
    ("ground_head_obj.", "head.object."),
    ("ground_head_query.", "head.text."),
)
"""The same for what the released code adds; ours are names of `ScanNetModel`."""
_HEAD_CHANNELS = 72
"""Of one attention head of SigLIP so400m; its configuration is not in the files."""
_BLOCKS = 26


def from_llava(weights: Mapping[str, T]) -> dict[str, T]:
    """Rename the backbone's weights of an original file.

    Raises:
        CheckpointError: There are weights of another architecture; all are listed.
    """
    known = tuple(old for old, _ in (*_PREFIXES, *_HEADS))
    unknown = [k for k in weights if not k.startswith(known)]
    if unknown:
        raise CheckpointError(
            f"weights {', '.join(sorted(unknown))} are none of LLaVA-Video-7B-Qwen2; use a checkpoint "
            "of that architecture"
        )
    rest = tuple(old for old, _ in _HEADS)
    return {
        _renamed(k, _PREFIXES): v
        for k, v in weights.items()
        if not (_is_spare(k) or k.startswith(rest))
    }


def heads_from_llava(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what an original file holds of prior projector, token gate and grounding head.

    The released gate reads the semantic stream first, ours the prior: its columns change places.
    """
    known = tuple(old for old, _ in _HEADS)
    heads = {_renamed(k, _HEADS): v for k, v in weights.items() if k.startswith(known)}
    score = heads.get("branch.fusion.score.weight")
    if score is not None:
        heads["branch.fusion.score.weight"] = score.roll(score.shape[1] // 2, dims=1)
    return heads


def to_llava(weights: Mapping[str, T]) -> dict[str, T]:
    """Undo `from_llava`."""
    back = [(ours, old) for old, ours in _PREFIXES]
    return {_renamed(k, back): v for k, v in weights.items()}


def is_llava(folder: Path) -> bool:
    """Tell whether a directory holds a model in the original layout."""
    config = folder / "config.json"
    return config.is_file() and "mm_vision_tower" in json.loads(config.read_text())


def open_llava(
    folder: Path, *, dtype: torch.dtype
) -> tuple[LlavaOnevisionForConditionalGeneration, dict[str, Tensor]]:
    """Read a directory in the original layout: ``config.json`` and safetensors files.

    Args:
        folder: The directory, which is left as it is.
        dtype: Of the weights.

    Returns:
        The backbone, and the heads' weights: empty where the model has none of them.

    Raises:
        CheckpointError: Weights are missing or do not fit; all are listed.
    """
    from accelerate import init_empty_weights

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no .safetensors files; download the whole model")
    stored: dict[str, Tensor] = {}
    for file in files:
        stored |= load_file(file)
    weights = from_llava(stored)
    tower = "model.vision_tower.post_layernorm."
    if f"{tower}weight" not in weights:  # never run; the class has it all the same
        like = weights["model.vision_tower.embeddings.patch_embedding.bias"]
        weights |= {f"{tower}weight": torch.ones_like(like), f"{tower}bias": torch.zeros_like(like)}
    config = backbone_config(json.loads((folder / "config.json").read_text()), weights)
    # Buffers (position ids, rotary frequencies) are real: no file holds them.
    with init_empty_weights(include_buffers=False):
        model = LlavaOnevisionForConditionalGeneration(config)
    expected = {k: v.shape for k, v in model.state_dict().items()}
    problems = [f"lack {k}" for k in sorted(set(expected) - set(weights))]
    problems += [
        f"give {k} the shape {list(weights[k].shape)}, the configuration {list(expected[k])}"
        for k in sorted(set(expected) & set(weights))
        if weights[k].shape != expected[k]
    ]
    if problems:
        raise CheckpointError(
            f"the weights of {folder} " + "; ".join(problems) + "; download the whole model again"
        )
    model.load_state_dict({k: v.to(dtype) for k, v in weights.items()}, assign=True)
    return model, {k: v.to(dtype) for k, v in heads_from_llava(stored).items()}


def backbone_config(said: Mapping[str, Any], weights: Mapping[str, Tensor]) -> LlavaOnevisionConfig:
    """Return the Hugging Face configuration of an original model.

    Args:
        said: Its ``config.json``: the sizes of the language model.
        weights: Renamed weights: the tower's sizes are read off them.
    """
    patch = weights["model.vision_tower.embeddings.patch_embedding.weight"]
    positions = weights["model.vision_tower.embeddings.position_embedding.weight"]
    blocks = [re.match(r"model\.vision_tower\.encoder\.layers\.(\d+)\.", k) for k in weights]
    side = round(len(positions) ** 0.5)
    # 384 pixels with patches of 14 leave 6 over; nothing but the division is ever used.
    image_px = 384 if (patch.shape[-1], side) == (14, 27) else side * patch.shape[-1]
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=patch.shape[0],
            intermediate_size=weights["model.vision_tower.encoder.layers.0.mlp.fc1.bias"].shape[0],
            num_hidden_layers=1 + max(int(b[1]) for b in blocks if b),
            num_attention_heads=max(1, patch.shape[0] // _HEAD_CHANNELS),
            image_size=image_px,
            patch_size=patch.shape[-1],
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            **{name: said[name] for name in _TEXT if name in said},
            rope_parameters={"rope_type": "default", "rope_theta": said.get("rope_theta", 1e6)},
        ),
        tie_word_embeddings=False,
    )


_TEXT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
)


def _is_spare(name: str) -> bool:
    block = re.match(re.escape(_TOWER) + r"encoder\.layers\.(\d+)\.", name)
    return name.startswith(f"{_TOWER}head.") or (block is not None and int(block[1]) >= _BLOCKS)


def _renamed(name: str, prefixes: Any) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name[len(old) :]
    raise CheckpointError(f"weight {name} is none of this architecture; use another checkpoint")
