"""Two sizes of each scene model, of the same classes: nano, which trains on two cores, and 7b."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

import vega_policy
from vega_policy.scene.heads.config import ScanNetConfig, VsiConfig
from vega_policy.scene.heads.remap import is_llava, open_llava
from vega_policy.scene.heads.scannet_model import ScanNetModel
from vega_policy.scene.heads.tokens import name_tokens, train_scene_tokenizer
from vega_policy.scene.heads.vsi_model import VsiModel
from vega_policy.spec import CheckpointError, ContractError
from vega_policy.vision.fusion import FusionConfig
from vega_policy.vision.prior import WEIGHTLESS, PriorConfig, WanDims, build_prior
from vega_policy.vision.stream import ProjectorConfig, VisionConfig, VisionStream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerFast

    from vega_policy.vision.prior import AnyPrior

Align = Literal["aligned", "upstream"]

SHARPNESS = 2.0
"""How much larger the first queries and keys of a nano language model are than usual.

Usual ones attend almost evenly, and twenty words among three hundred visual tokens are lost in the mean:
training finds no way out in its first hundreds of updates. With 6 each token attends to one other, whatever
it is, and that is as hard to leave."""

CHECKPOINT = "nano-libero-object"
"""Policy that comes with the package; nano scene models take its towers and its prior."""

WAN_13B = WanDims(
    heads=12, head_dim=128, n_blocks=30, ffn_width=8960, text_width=4096, vae_width=96
)


def policy_folder(name: Path | str = CHECKPOINT) -> Path:
    """Return the directory of a policy that comes with the package, or a given one.

    Raises:
        ContractError: There is none.
    """
    for folder in (Path(name), Path(vega_policy.__file__).parent / "assets" / name):
        if (folder / "config.json").is_file():
            return folder
    raise ContractError(
        f"there is no policy {str(name)!r}; name a checkpoint directory of a policy"
    )


def scannet_config(
    preset: str = "nano", *, align: Align = "aligned", towers: str | None = None
) -> ScanNetConfig:
    """Return settings.

    Args:
        preset: ``nano`` or ``7b``.
        align: ``aligned``: the prior sees the whole frame. ``upstream``: the released code's centre
            crop, whose grid lies beside the towers' (7b only).
        towers: See `ScanNetConfig`; None is the preset's own.
    """
    if preset == "nano":
        config = ScanNetConfig(patches="share")
    else:
        config = ScanNetConfig(
            towers="backbone",
            points="all",
            chat="qwen",
            vision=VisionConfig(
                prior=PriorConfig(
                    width=1536,
                    image_px=672,
                    grid=14,
                    block_index=20,
                    prompt_tokens=512,
                    align="camera" if align == "aligned" else "upstream",
                    frame_size=(720, 1280),
                    dims=WAN_13B,
                ),
                projector=ProjectorConfig(prior_hidden=3584, prior_norm="none"),
                fusion=FusionConfig(name="token_gate_normed"),
            ),
        )
    return config if towers is None else dataclasses.replace(config, towers=towers)


def scannet_backbone(
    preset: str = "nano", *, towers: str = "policy", vocab_size: int = 1024
) -> LlavaOnevisionConfig:
    """Return the backbone's sizes: those of LLaVA-Video-7B-Qwen2, or nano ones.

    A nano backbone whose towers are the policy's still has a SigLIP, because the class insists: one
    block of 8 channels that never runs.

    Args:
        preset: ``nano`` or ``7b``.
        towers: See `ScanNetConfig` (nano only).
        vocab_size: Of the tokenizer (nano only).
    """
    if preset != "nano":
        return LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(
                hidden_size=1152,
                intermediate_size=4304,
                num_hidden_layers=26,
                num_attention_heads=16,
                image_size=384,
                patch_size=14,
                vision_use_head=False,
            ),
            text_config=Qwen2Config(
                vocab_size=152064,
                hidden_size=3584,
                intermediate_size=18944,
                num_hidden_layers=28,
                num_attention_heads=28,
                num_key_value_heads=4,
                max_position_embeddings=32768,
                rms_norm_eps=1e-6,
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            ),
        )
    is_stub = towers == "policy"
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=8 if is_stub else 96,
            intermediate_size=8 if is_stub else 384,
            num_hidden_layers=1 if is_stub else 3,
            num_attention_heads=1 if is_stub else 3,
            image_size=128,
            patch_size=8,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=16384,
            rms_norm_eps=1e-6,
            initializer_range=0.05,
            bos_token_id=1,
            eos_token_id=0,
        ),
    )


def nano_scannet(
    texts: Iterable[str],
    *,
    config: ScanNetConfig | None = None,
    policy: Path | str | None = CHECKPOINT,
    seed: int = 0,
) -> ScanNetModel:
    """Make a nano model: new, but for what it takes of a policy.

    Args:
        texts: Prompts and answers the tokenizer is trained on.
        config: Settings; None is `scannet_config`.
        policy: Its prior is the model's; with ``towers=policy`` so are its towers, projectors and
            fusion to begin with, where they have the same shape. None makes random ones.
        seed: Of new weights; global random state is left as it was.
    """
    config = scannet_config() if config is None else config
    folder = None if policy is None else policy_folder(policy)
    tokenizer = train_scene_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prior = None
        if config.vision.fusion.uses_prior:
            path = None if folder is None else folder / "prior"
            prior = build_prior(config.vision.prior, path=path, seed=seed)
        model = ScanNetModel(
            config,
            backbone=LlavaOnevisionForConditionalGeneration(
                scannet_backbone(towers=config.towers, vocab_size=len(tokenizer))
            ),
            tokenizer=tokenizer,
            prior=prior,
        )
    _sharpen(model)
    if folder is not None and isinstance(model.branch, VisionStream):
        _take_stream(model.branch, folder)
    return model.eval()


def vsi_config(preset: str = "nano", *, align: Align = "aligned") -> VsiConfig:
    """Return settings of a `VsiModel`; see `scannet_config`."""
    if preset == "nano":
        return VsiConfig(vision=VisionConfig(fusion=FusionConfig(name="token_gate_residual")))
    return VsiConfig(
        vision=VisionConfig(
            prior=PriorConfig(
                width=1536,
                image_px=480,
                block_index=29,
                prompt_tokens=512,
                align="camera" if align == "aligned" else "upstream",
                frame_size=(480, 832),
                dims=WAN_13B,
            ),
            fusion=FusionConfig(name="token_gate_residual"),
        ),
        merger_hidden=4096,
        width_px=518,
        chat="qwen",
    )


def vsi_backbone(preset: str = "nano", *, vocab_size: int = 1024) -> Qwen2_5_VLConfig:
    """Return the backbone's sizes: those of Qwen2.5-VL-7B-Instruct, or nano ones."""
    if preset != "nano":
        return Qwen2_5_VLConfig(
            vision_config={
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
                "tokens_per_second": 2,
            },
            text_config={
                "vocab_size": 152064,
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "max_position_embeddings": 128000,
                "rms_norm_eps": 1e-6,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1000000.0,
                    "mrope_section": [16, 24, 24],
                },
            },
        )
    return Qwen2_5_VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 3,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [0, 1, 2],
            "tokens_per_second": 2,
        },
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 16384,
            "rms_norm_eps": 1e-6,
            "initializer_range": 0.05,
            "bos_token_id": 1,
            "eos_token_id": 0,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
        },
    )


def nano_vsi(
    texts: Iterable[str],
    *,
    config: VsiConfig | None = None,
    policy: Path | str | None = CHECKPOINT,
    seed: int = 0,
) -> VsiModel:
    """Make a nano model with a policy's prior; see `nano_scannet`."""
    config = vsi_config() if config is None else config
    tokenizer = train_scene_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prior = None
        if config.vision.fusion.uses_prior:
            path = None if policy is None else policy_folder(policy) / "prior"
            prior = build_prior(config.vision.prior, path=path, seed=seed)
        model = VsiModel(
            config,
            backbone=Qwen2_5_VLForConditionalGeneration(vsi_backbone(vocab_size=len(tokenizer))),
            tokenizer=tokenizer,
            prior=prior,
        )
    _sharpen(model)
    return model.eval()


@torch.no_grad()
def _sharpen(model: ScanNetModel | VsiModel) -> None:
    """Let a new language model attend to something; see `SHARPNESS`."""
    for layer in model.backbone.model.language_model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.weight.mul_(SHARPNESS)


def open_scannet(
    backbone: Path | str,
    *,
    prior: Path | str | None,
    config: ScanNetConfig | None = None,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> ScanNetModel:
    """Put prior branch and grounding head on a published backbone.

    They are new, unless the directory holds them: what the released code of VEGA-3D or Video-3D-LLM
    has trained (the latter with fusion ``none``).

    Args:
        backbone: Directory of LLaVA-Video-7B-Qwen2 in its original layout, or of a model of the
            same architecture in the Hugging Face layout, with its tokenizer.
        prior: Directory of Wan2.1-T2V-1.3B-Diffusers; None only for a fusion without a prior.
        config: Settings; None is ``scannet_config("7b")``.
        dtype: Of every weight but the prior's.
        seed: Of new weights.

    Raises:
        CheckpointError: A directory is missing or does not hold what it should.
    """
    folder = _published(backbone, "LLaVA-Video-7B-Qwen2")
    config = scannet_config("7b") if config is None else config
    heads: dict[str, torch.Tensor] = {}
    if is_llava(folder):
        network, heads = open_llava(folder, dtype=dtype)
    else:
        network = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ScanNetModel(
            config,
            backbone=network,
            tokenizer=published_tokenizer(folder),
            prior=_published_prior(config.vision, prior),
        )
    model.cast_heads(dtype)
    if heads:
        model.load_head_state_dict(heads)
    return model.eval()


def open_vsi(
    backbone: Path | str,
    *,
    prior: Path | str | None,
    config: VsiConfig | None = None,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> VsiModel:
    """Put a new prior branch on Qwen2.5-VL-7B-Instruct (or 3B); see `open_scannet`."""
    folder = _published(backbone, "Qwen2.5-VL-7B-Instruct")
    config = vsi_config("7b") if config is None else config
    network = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VsiModel(
            config,
            backbone=network,
            tokenizer=published_tokenizer(folder),
            prior=_published_prior(config.vision, prior),
        )
    model.cast_heads(dtype)
    return model.eval()


def published_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a published model, with the scene models' tokens added."""
    return name_tokens(AutoTokenizer.from_pretrained(folder, local_files_only=True))


def _published(folder: Path | str, name: str) -> Path:
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} holds no model (config.json missing); download {name} there, or name the "
            "directory that has it"
        )
    return folder


def _published_prior(vision: VisionConfig, path: Path | str | None) -> AnyPrior | None:
    if not vision.fusion.uses_prior:
        return None
    if path is None and vision.prior.name not in WEIGHTLESS:
        raise ContractError(
            f"fusion {vision.fusion.name} needs prior {vision.prior.name} and no directory is given; "
            "name the one of its weights (Wan2.1-T2V-1.3B-Diffusers), or set fusion.name=none"
        )
    return build_prior(vision.prior, path=path)


def _take_stream(stream: VisionStream, folder: Path) -> None:
    """Copy what a policy's stream and this one have in common."""
    stored: dict[str, Any] = load_file(folder / "model.safetensors")
    own = stream.state_dict()
    shared = {
        name: tensor
        for key, tensor in stored.items()
        if (name := key.removeprefix("vision.")) != key
        and name in own
        and own[name].shape == tensor.shape
    }
    stream.load_state_dict(shared, strict=False)
