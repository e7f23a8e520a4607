"""A checkpoint in the layout OpenVLA-OFT publishes, with random weights and sizes for a test."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from vega_policy.policy.config import PolicyConfig
from vega_policy.policy.model import VegaModel
from vega_policy.policy.published.keys import (
    ACTION_HEAD,
    DINO,
    LANGUAGE,
    NOISY_ACTION,
    PROPRIO,
    SIGLIP,
    source_of,
)
from vega_policy.policy.published.settings import TOWERS
from vega_policy.policy.published.tensors import INDEX
from vega_policy.policy.statistics import save_statistics
from vega_policy.policy.tokenizer import train_tokenizer
from vega_policy.testing.tiny_policy import INSTRUCTIONS, tiny_statistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from vega_policy.vision.semantic import TowerConfig

_COMPONENTS = (ACTION_HEAD, PROPRIO, NOISY_ACTION)
_N_TEXT = 320


def published_config(*, kind: str = "l1") -> PolicyConfig:
    """Return the sizes: 28 px images, 2 x 2 tokens per camera, about 80,000 weights.

    Args:
        kind: Of the head, see `vega_policy.policy.heads.HeadConfig`.
    """
    tower = {"width": 16, "depth": 2, "heads": 2}
    return PolicyConfig.preset("7b").changed(
        {
            "proprio_size": 0 if kind == "discrete" else 8,
            "semantic": {
                "image_px": 28,
                "dino": {**tower, "mlp_width": 64},
                "siglip": {**tower, "mlp_width": 59},
            },
            "projector": {"semantic_hidden": 128},
            "prior": {"grid": 2},
            "fusion": {"name": "none"},
            "language": {
                "width": 32,
                "depth": 2,
                "heads": 2,
                "mlp_width": 64,
                "vocab_size": _N_TEXT + 256 + 64,
            },
            "head": {"kind": kind, "width": 32},
        }
    )


def published_checkpoint(
    path: Path,
    *,
    config: PolicyConfig | None = None,
    datasets: Sequence[str] = ("libero_object_no_noops",),
    seed: int = 0,
    max_shard_size: int | str = "100KB",
    is_base: bool = False,
) -> Path:
    """Write a checkpoint with random weights in the published layout.

    File names, key names, types, parts that are never used and the traps of the configuration are
    those of the published ones; the tokenizer is one of our own.

    Args:
        path: Directory to write.
        config: Sizes and head; None is `published_config`.
        datasets: Keys of the statistics.
        seed: Of the weights.
        max_shard_size: Of a weight file.
        is_base: Before fine-tuning: without head and proprio projector, and with statistics in
            ``config.json`` alone.

    Returns:
        ``path``.
    """
    config = config or published_config()
    path.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = published_weights(VegaModel(config), config)
    main = {k: v.bfloat16() for k, v in weights.items() if not k.startswith(_COMPONENTS)}
    split = split_torch_state_dict_into_shards(
        main, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: main[name] for name in names}, path / file, metadata={"format": "pt"})
    _dump(path / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    for component in _COMPONENTS:
        dtype = torch.bfloat16 if component == ACTION_HEAD else torch.float32
        part = {
            f"module.{key.removeprefix(component)}": value.to(dtype)
            for key, value in weights.items()
            if key.startswith(component)
        }
        if part and not is_base:
            torch.save(part, path / f"{component.removesuffix('.')}--150000_checkpoint.pt")
    values = _published_json(config)
    if is_base:
        values["norm_stats"] = {"bridge_orig": tiny_statistics().to_dict()}
    else:
        save_statistics(
            path / "dataset_statistics.json", dict.fromkeys(datasets, tiny_statistics())
        )
    _dump(path / "config.json", values)
    tokenizer = train_tokenizer(INSTRUCTIONS, vocab_size=_N_TEXT)
    tokenizer.backend_tokenizer.save(str(path / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    _dump(path / "tokenizer_config.json", names)
    return path


def published_weights(model: VegaModel, config: PolicyConfig) -> dict[str, Tensor]:
    """Return a model's weights by their published names, and parts that are never used."""
    pieces: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, value in model.trainable_state_dict().items():
        source = source_of(name)
        pieces[source.key][source.take] = value.contiguous()
    weights = {key: _joined(parts) for key, parts in pieces.items()}
    for prefix, tower in ((DINO, config.semantic.dino), (SIGLIP, config.semantic.siglip)):
        weights |= _unused(prefix, tower, weights)
    weights.setdefault(
        f"{LANGUAGE}lm_head.weight",
        torch.randn_like(weights[f"{LANGUAGE}model.embed_tokens.weight"]),
    )
    return weights


def _joined(parts: Mapping[str, Tensor]) -> Tensor:
    """Undo `Source.of`."""
    if "q" in parts:
        return torch.cat([parts[third] for third in "qkv"])
    ((take, value),) = parts.items()
    if take == "without batch":
        return value[None].clone()
    return value[:, 1:].clone() if take == "behind a zero" else value.clone()


def _unused(prefix: str, tower: TowerConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the published towers have and nobody reads."""
    first, last = f"{prefix}blocks.0.", f"{prefix}blocks.{tower.depth}."
    width = tower.width
    result = {
        last + key.removeprefix(first): torch.randn_like(value)
        for key, value in weights.items()
        if key.startswith(first)
    }
    result |= {f"{prefix}norm.{part}": torch.randn(width) for part in ("weight", "bias")}
    if prefix == SIGLIP:
        sizes = {
            "q": (width, width),
            "kv": (2 * width, width),
            "proj": (width, width),
            "mlp.fc1": (tower.mlp_width, width),
            "mlp.fc2": (width, tower.mlp_width),
        }
        pool = f"{prefix}attn_pool."
        result[f"{pool}latent"] = torch.randn(1, 1, width)
        result |= {f"{pool}norm.{part}": torch.randn(width) for part in ("weight", "bias")}
        result |= {f"{pool}{name}.weight": torch.randn(size) for name, size in sizes.items()}
        result |= {f"{pool}{name}.bias": torch.randn(size[0]) for name, size in sizes.items()}
    return result


def _published_json(config: PolicyConfig) -> dict[str, object]:
    """Return ``config.json``; its ``auto_map`` names code that is not there."""
    language, side = config.language, config.semantic.image_px
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
        "image_sizes": [side, side],
        "model_type": "openvla",
        "norm_stats": {"bridge_orig": {"action": {}, "proprio": {}}},
        "text_config": {
            "model_type": "llama",
            "vocab_size": language.vocab_size,
            "hidden_size": language.width,
            "intermediate_size": language.mlp_width,
            "num_hidden_layers": language.depth,
            "num_attention_heads": language.heads,
        },
        "timm_model_ids": list(TOWERS),
        "timm_model_args": [
            {
                "embed_dim": tower.width,
                "depth": tower.depth + 1,
                "num_heads": tower.heads,
                # Rounded up, since readers cut the product off.
                "mlp_ratio": (tower.mlp_width + 0.5) / tower.width,
                "reg_tokens": tower.n_registers,
            }
            for tower in (config.semantic.dino, config.semantic.siglip)
        ],
        "use_fused_vision_backbone": True,
    }


def _dump(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
