"""The configuration of a published checkpoint, from its files and the shapes in them."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from vega_policy.policy.config import PolicyConfig
from vega_policy.policy.published.keys import (
    ACTION_HEAD,
    DIFFUSION_HEAD,
    L1_HEAD,
    PROPRIO,
)
from vega_policy.policy.published.layout import VISION_BACKBONE
from vega_policy.spec import CheckpointError, ContractError
from vega_policy.vision.fusion import FusionConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vega_policy.policy.published.layout import PublishedFolder
    from vega_policy.policy.published.tensors import Stored
    from vega_policy.vision.semantic import TowerConfig

log = logging.getLogger(__name__)

TOWERS = ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224")
"""timm's names of DINO and SigLIP, in the order of their channels."""
_LLAMA = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "max_position_embeddings": "max_positions",
}


def read_settings(
    folder: PublishedFolder, settings: Mapping[str, Any] | None = None
) -> PolicyConfig:
    """Return the configuration a checkpoint was trained with.

    The base is ``7b``, whose sizes the published files leave out because they are the defaults of
    the libraries. They also leave out what was given on a command line: cameras (2 are assumed),
    steps per chunk (8) and the bounds of the normalisation (q01 and q99), as for LIBERO.

    Args:
        folder: The checkpoint.
        settings: What differs from that, as `PolicyConfig.from_dict` takes it.

    Raises:
        CheckpointError: It is of another architecture, or its files contradict each other.
    """
    raw = folder.config
    base = PolicyConfig.preset("7b")
    _require_architecture(folder, raw)
    text = raw.get("text_config") or {}
    language = dataclasses.replace(
        base.language, **{ours: text[key] for key, ours in _LLAMA.items() if key in text}
    )
    if text.get("num_key_value_heads", language.heads) != language.heads:
        raise CheckpointError(
            f"{folder.model}: text_config shares keys between heads "
            f"({text['num_key_value_heads']} of {language.heads}), expected a Llama-2 7B"
        )
    dino, siglip = (
        _tower(tower, args)
        for tower, args in zip(
            (base.semantic.dino, base.semantic.siglip),
            raw.get("timm_model_args") or ({}, {}),
            strict=True,
        )
    )
    is_film = folder.component(VISION_BACKBONE) is not None
    semantic = dataclasses.replace(
        base.semantic,
        image_px=(raw.get("image_sizes") or [base.image_px])[0],
        dino=dino,
        siglip=siglip,
        film=is_film,
    )
    config = dataclasses.replace(
        base,
        semantic=semantic,
        language=language,
        projector=dataclasses.replace(base.projector, semantic_hidden=4 * semantic.width),
        prior=dataclasses.replace(base.prior, grid=semantic.grid),
        fusion=FusionConfig(name="none"),
    )
    config = _with_head(folder, config)
    said = settings or {}
    if config.head.kind != "discrete" and not config.proprio_size and "proprio_size" not in said:
        raise CheckpointError(
            f"{folder.path} has a head and no {PROPRIO.removesuffix('.')}--*_checkpoint.pt; download "
            "it too, or pass settings with proprio_size=0 if it was trained without"
        )
    if config.action.size != base.action.size and "horizon" not in said.get("action", {}):
        raise CheckpointError(
            f"the head of {folder.path} gives {config.action.size} numbers per action, so it is no "
            "LIBERO policy and nothing here says how many steps a chunk has; pass settings with "
            "action.horizon, and cameras and normalisation too (ALOHA: 25, three, bounds)"
        )
    try:
        return config.changed(said)
    except ContractError as error:
        raise CheckpointError(f"{folder.path}: {error}") from error


def _require_architecture(folder: PublishedFolder, raw: Mapping[str, Any]) -> None:
    found = {
        "timm_model_ids": list(raw.get("timm_model_ids") or ()),
        "use_fused_vision_backbone": raw.get("use_fused_vision_backbone"),
        "text_config.model_type": (raw.get("text_config") or {}).get("model_type"),
    }
    expected = {
        "timm_model_ids": list(TOWERS),
        "use_fused_vision_backbone": True,
        "text_config.model_type": "llama",
    }
    problems = [
        f"{key} is {found[key]!r}, expected {expected[key]!r}"
        for key in expected
        if found[key] != expected[key]
    ]
    if problems:
        raise CheckpointError(
            f"{folder.model / 'config.json'} is of another architecture: {'; '.join(problems)}; "
            "only OpenVLA-7B and what was fine-tuned from it can be read"
        )


def _tower(full: TowerConfig, args: Mapping[str, Any]) -> TowerConfig:
    """Return a tower's sizes without the last block; ``args`` are timm's, where they are given."""
    if not args:
        return full
    width = args["embed_dim"]
    return dataclasses.replace(
        full,
        width=width,
        depth=args["depth"] - 1,
        heads=args["num_heads"],
        mlp_width=int(width * args["mlp_ratio"]),
        n_registers=args.get("reg_tokens", 0),
    )


def _with_head(folder: PublishedFolder, config: PolicyConfig) -> PolicyConfig:
    """Read the kind and sizes of the head and the proprioception from the component files."""
    head = folder.component_tensors(ACTION_HEAD)
    proprio = folder.component_tensors(PROPRIO)
    if not head:
        if folder.is_base:
            return config
        if proprio:
            raise CheckpointError(
                f"{folder.path} has a {PROPRIO.removesuffix('.')} and no "
                f"{ACTION_HEAD.removesuffix('.')}--*_checkpoint.pt; download it too"
            )
        log.warning(
            "%s has no head, so it is read as OpenVLA-OFT's variant with action tokens, all at once; a "
            "checkpoint whose head was left out, or that gives one token after another as the first "
            "OpenVLA did, would act wrongly",
            folder.path,
        )
        # Action tokens are asked for without proprioception, whether or not it was trained with.
        return dataclasses.replace(
            config, proprio_size=0, head=dataclasses.replace(config.head, kind="discrete")
        )
    kind, prefix = next(
        (
            (kind, prefix)
            for kind, prefix in (("l1", L1_HEAD), ("diffusion", DIFFUSION_HEAD))
            if f"{prefix}fc2.weight" in head
        ),
        (None, ""),
    )
    if kind is None:
        raise CheckpointError(
            f"{folder.component(ACTION_HEAD)} holds {', '.join(sorted(head)[:3])}, expected "
            f"{L1_HEAD}* or {DIFFUSION_HEAD}*; it is no head of OpenVLA-OFT"
        )
    size, width = _matrix(folder, head, f"{prefix}fc2.weight")
    n_blocks = sum(key.endswith(".ffn.1.weight") for key in head)
    n_proprio = _matrix(folder, proprio, f"{PROPRIO}fc1.weight")[1] if proprio else 0
    return dataclasses.replace(
        config,
        proprio_size=n_proprio,
        action=dataclasses.replace(config.action, size=size),
        head=dataclasses.replace(config.head, kind=kind, width=width, n_blocks=n_blocks),
    )


def _matrix(folder: PublishedFolder, weights: Mapping[str, Stored], key: str) -> tuple[int, int]:
    shape = weights[key].shape if key in weights else ()
    if len(shape) != 2:
        raise CheckpointError(
            f"{folder.path}: {key} is {list(shape)}, expected a matrix; download the file again"
        )
    return shape
