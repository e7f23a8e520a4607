"""Frozen V-JEPA 2 features: a video encoder trained to predict features, not pixels.

Shape legend: ``b`` batch, ``v`` views (cameras), ``k`` videos, ``t`` frames of a video, ``s`` slices
(``t / tubelet``), ``n`` tokens of one slice, ``c`` width.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false
# ruff: noqa: ANN401
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2RopeAttention

from vega_policy.spec.errors import ContractError
from vega_policy.vision.prior.dinov3 import imagenet
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

    from torch import Tensor
    from transformers import VJEPA2Config, VJEPA2Model

    from vega_policy.vision.prior.config import PriorConfig


class VJepa2Prior(FrozenPrior):
    """The tokens of one block of the encoder, after its final norm.

    A token covers ``config.vit.tubelet`` frames. With ``frames="still"`` every image is repeated to
    that length and is a video of its own. With ``"clip"`` the views of an observation are one video,
    each repeated, so that every view has its own tokens; the paper's code instead stretches the
    frames to whole tubelets and its features back. It also crops the centre 224 of 256 pixels, which
    shifts the tokens against the semantic ones; here the whole image is seen.
    """

    def __init__(self, config: PriorConfig, *, vit: VJEPA2Model) -> None:
        """Freeze the encoder; the predictor's blocks and those behind the one that is read go.

        Raises:
            CheckpointError: It disagrees with the configuration.
            ContractError: The settings contradict each other.
        """
        super().__init__(config)
        refuse_settings(config, clips=True, crops=False)
        _check(config, vit.config)
        require_depth(config, len(vit.encoder.layer))
        require_multiple(config, config.vit.patch_px, why="which is no whole number of patches")
        del vit.encoder.layer[config.block_index + 1 :]
        del vit.predictor.layer[:]
        vit.config.num_hidden_layers = config.block_index + 1
        vit.config.pred_num_hidden_layers = 0
        for layer in vit.encoder.layer:
            layer.attention.__class__ = _Attention
        self.vit = vit
        self.freeze()

    @classmethod
    def from_config(cls, config: PriorConfig, *, seed: int = 0) -> Self:
        """Make a prior with random weights."""
        with kept_random_state(seed):
            return cls(config, vit=new_vjepa2(config))

    @classmethod
    def load(cls, path: Path | str, config: PriorConfig) -> Self:
        """Read a transformers directory such as ``facebook/vjepa2-vitg-fpc64-256``.

        Raises:
            CheckpointError: It is missing or disagrees with the configuration.
        """
        from transformers import VJEPA2Config, VJEPA2Model

        folder = part_folder(path, parts=())
        require_parts(folder, ["config.json"], what="a transformers directory")
        _check(config, VJEPA2Config.from_pretrained(folder))
        # The library counts rows and columns by this size, not by the image's.
        return cls(config, vit=read_transformers(VJEPA2Model, folder, crop_size=config.image_px))

    def save(self, path: Path | str) -> None:
        """Write the directory `load` reads, without the blocks that are never run."""
        self.vit.save_pretrained(path)

    def encode(self, frames: Tensor, *, keys: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:  # noqa: ARG002
        """Read the block; see `FrozenPrior.encode`. The keys are not read.

        Raises:
            ContractError: The frames are not square, which the library's positions need.
        """
        b, v = frames.shape[:2]
        if frames.shape[-2] != frames.shape[-1]:
            raise ContractError(
                f"prior vjepa2 got frames of {frames.shape[-2]}x{frames.shape[-1]} pixels; it reads "
                "squares only, crop or pad the camera's image"
            )
        videos = imagenet(self.framed(frames.flatten(0, 1), multiple=self.config.vit.patch_px))
        length = v if self.config.frames == "clip" else 1
        videos = videos.unflatten(0, (-1, length))
        videos = videos.repeat_interleave(self.config.vit.tubelet, dim=1)
        tokens = self.vit.encoder(videos.to(self.vit.dtype)).last_hidden_state
        side = self.config.image_px // self.config.vit.patch_px
        return tokens.reshape(b, v, -1, tokens.shape[-1]), (side, side)


def new_vjepa2(config: PriorConfig) -> VJEPA2Model:
    """Make a whole encoder with random weights, and a predictor without blocks."""
    from transformers import VJEPA2Config, VJEPA2Model

    dims = config.vit
    return VJEPA2Model(
        VJEPA2Config(
            hidden_size=dims.width,
            mlp_ratio=dims.mlp_width / dims.width,
            num_hidden_layers=dims.depth,
            num_attention_heads=dims.heads,
            patch_size=dims.patch_px,
            tubelet_size=dims.tubelet,
            crop_size=config.image_px,
            pred_num_hidden_layers=0,
        )
    )


class _Attention(VJEPA2RopeAttention):
    """The library's attention, with the rotation of a cast model still computed in float32."""

    def apply_rotary_embeddings(self, qk: Tensor, pos_ids: Any) -> Tensor:
        return super().apply_rotary_embeddings(qk.float(), pos_ids).to(qk.dtype)


def _check(config: PriorConfig, found: VJEPA2Config) -> None:
    dims = config.vit
    refuse_disagreements(
        "the transformer",
        {
            "width": (found.hidden_size, config.width),
            "vit.width": (found.hidden_size, dims.width),
            "vit.heads": (found.num_attention_heads, dims.heads),
            "vit.mlp_width": (int(found.hidden_size * found.mlp_ratio), dims.mlp_width),
            "vit.patch_px": (found.patch_size, dims.patch_px),
            "vit.tubelet": (found.tubelet_size, dims.tubelet),
        },
    )
