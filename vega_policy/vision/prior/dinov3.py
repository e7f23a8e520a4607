"""Frozen DINOv3 features: is the prior's gain its generative training, or any second encoder?

Shape legend: ``b`` batch, ``v`` views (cameras), ``f`` frames (``b * v``).
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false
# ruff: noqa: ANN401
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vega_policy.vision.prior.frozen import FrozenPrior
from vega_policy.vision.prior.parts import (
    kept_random_state,
    part_folder,
    read_transformers,
    refuse_disagreements,
    refuse_settings,
    require_depth,
    require_multiple,
    require_parts,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    from vega_policy.vision.prior.config import PriorConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Dinov3Prior(FrozenPrior):
    """The patch tokens of one block, after the model's final norm; class and register tokens go.

    The paper's code reads the last block (index 23 of ViT-L). As in the model's own
    ``get_intermediate_layers``, an earlier block passes the same final norm.
    """

    def __init__(self, config: PriorConfig, *, vit: DINOv3ViTModel) -> None:
        """Freeze the transformer, whose blocks behind the one that is read go.

        Raises:
            CheckpointError: It disagrees with the configuration.
            ContractError: The settings contradict each other.
        """
        super().__init__(config)
        refuse_settings(config)
        _check(config, vit.config)
        require_depth(config, len(vit.model.layer))
        require_multiple(config, config.vit.patch_px, why="which is no whole number of patches")
        del vit.model.layer[config.block_index + 1 :]
        vit.config = _shortened(vit.config, config.block_index + 1)
        self.vit = vit
        self.freeze()

    @classmethod
    def from_config(cls, config: PriorConfig, *, seed: int = 0) -> Self:
        """Make a prior with random weights."""
        with kept_random_state(seed):
            return cls(config, vit=new_dinov3(config))

    @classmethod
    def load(cls, path: Path | str, config: PriorConfig) -> Self:
        """Read a transformers directory such as ``facebook/dinov3-vitl16-pretrain-lvd1689m``.

        Raises:
            CheckpointError: It is missing or disagrees with the configuration.
        """
        from transformers import DINOv3ViTConfig, DINOv3ViTModel

        folder = part_folder(path, parts=())
        require_parts(folder, ["config.json"], what="a transformers directory")
        _check(config, DINOv3ViTConfig.from_pretrained(folder))
        return cls(config, vit=read_transformers(DINOv3ViTModel, folder))

    def save(self, path: Path | str) -> None:
        """Write the directory `load` reads, without the blocks that are never run."""
        self.vit.save_pretrained(path)

    def encode(self, frames: Tensor, *, keys: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:  # noqa: ARG002
        """Read the block; see `FrozenPrior.encode`. The keys are not read."""
        patch = self.config.vit.patch_px
        picture = self.framed(frames.flatten(0, 1), multiple=patch)
        tokens = self.vit(imagenet(picture).to(self.vit.dtype)).last_hidden_state
        tokens = tokens[:, 1 + self.config.vit.n_registers :]
        grid = (picture.shape[-2] // patch, picture.shape[-1] // patch)
        return tokens.unflatten(0, frames.shape[:2]), grid

    def _apply(self, fn: Any, recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        super()._apply(fn, recurse)
        rope = self.vit.rope_embeddings
        if rope.inv_freq.dtype != torch.float32:  # a cast has rounded the rotary frequencies
            self.vit.rope_embeddings = type(rope)(self.vit.config).to(rope.inv_freq.device)
        return self


def new_dinov3(config: PriorConfig) -> DINOv3ViTModel:
    """Make a whole transformer with random weights."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    dims = config.vit
    return DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=dims.width,
            intermediate_size=dims.mlp_width,
            num_hidden_layers=dims.depth,
            num_attention_heads=dims.heads,
            patch_size=dims.patch_px,
            num_register_tokens=dims.n_registers,
            image_size=config.image_px,
        )
    )


def imagenet(frames: Tensor) -> Tensor:
    """Return frames (..., 3, h, w) in [-1, 1] with ImageNet's mean and deviation taken out."""
    # Made at every call: as buffers the constants would be rounded when the model is cast.
    mean = torch.tensor(IMAGENET_MEAN, device=frames.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=frames.device).view(3, 1, 1)
    return ((frames + 1) / 2 - mean) / std


def _shortened(config: DINOv3ViTConfig, n_blocks: int) -> DINOv3ViTConfig:
    """Return the configuration of fewer blocks; the names of its stages count them too."""
    derived = ("stage_names", "out_features", "out_indices", "num_hidden_layers")
    kept = {name: value for name, value in config.to_dict().items() if name not in derived}
    return type(config)(**kept, num_hidden_layers=n_blocks)


def _check(config: PriorConfig, found: Any) -> None:
    dims = config.vit
    refuse_disagreements(
        "the transformer",
        {
            "width": (found.hidden_size, config.width),
            "vit.width": (found.hidden_size, dims.width),
            "vit.heads": (found.num_attention_heads, dims.heads),
            "vit.mlp_width": (found.intermediate_size, dims.mlp_width),
            "vit.patch_px": (found.patch_size, dims.patch_px),
            "vit.n_registers": (found.num_register_tokens, dims.n_registers),
        },
    )
