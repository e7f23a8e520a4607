"""VSI-Bench on Qwen2.5-VL, with the policy's prior and fusion rules.

Every frame enters as an image, 14 rows of 18 tokens for a video of 4:3: 252. Order of the steps: the
backbone's vision and merger; the prior's features on their own grid, resampled bilinearly to the
patch grid, normalised, merged two by two, projected; fusion. No depth, pose or position code.

Shape legend: ``v`` frames, ``r, k`` rows and columns of the prior's grid, ``gh, gw`` patches, ``n = gh *
gw / 4`` tokens of a frame, ``c`` width of the prior, ``d`` width of the language model.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vega_policy.scene.heads.checkpoint import load_parts, save_parts
from vega_policy.scene.heads.config import VsiConfig
from vega_policy.scene.heads.prompts import IMAGE
from vega_policy.scene.heads.scene_model import SceneModel
from vega_policy.scene.heads.tokens import QWEN_IMAGE, VISION_END, VISION_START
from vega_policy.spec import ContractError
from vega_policy.vision.fusion import Fused, build_fusion
from vega_policy.vision.prior import LayerNormPrior, build_prior
from vega_policy.vision.prior.store import FeatureStore, PriorIdentity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

    from transformers import PreTrainedTokenizerFast

    from vega_policy.scene.heads.inputs import SceneInputs
    from vega_policy.vision.prior import AnyPrior
    from vega_policy.vision.prior.store import FeatureDtype

KIND = "vsi"
MERGE = 2
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's constants, with which Qwen2.5-VL was trained."""


@dataclass(frozen=True, eq=False)
class VideoTokens:
    """What the language model reads of some videos; one entry for each."""

    tokens: tuple[Tensor, ...]
    """(v, n, d) fused."""
    grids: tuple[tuple[int, int], ...]
    """(gh, gw) patches of a frame."""
    gates: tuple[Tensor | None, ...]
    """(v * n, 1) weight of the semantic stream, where the fusion rule has one."""

    def __len__(self) -> int:
        """Return the number of videos."""
        return len(self.tokens)

    def take(self, indices: Sequence[int]) -> VideoTokens:
        """Return some videos, also several times over: one for each text."""
        return VideoTokens(
            tokens=tuple(self.tokens[i] for i in indices),
            grids=tuple(self.grids[i] for i in indices),
            gates=tuple(self.gates[i] for i in indices),
        )


class PatchMerger(nn.Module):
    """Bring features of any grid to the merged tokens of a frame, as wide as the language model."""

    def __init__(self, *, source: int, hidden: int, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(source, eps=1e-6)
        self.fc1 = nn.Linear(MERGE * MERGE * source, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, features: Tensor, *, grid: tuple[int, int]) -> Tensor:
        """Return (v, n, d) of features (v, r, k, c) for a patch grid (gh, gw)."""
        image = functional.interpolate(features.movedim(-1, 1), grid, mode="bilinear")
        normed = self.norm(image.movedim(1, -1).to(self.norm.weight.dtype))
        blocks = normed.unflatten(1, (-1, MERGE)).unflatten(3, (-1, MERGE)).transpose(2, 3)
        return self.fc2(functional.gelu(self.fc1(blocks.flatten(3).flatten(1, 2))))


class MergedBranch(nn.Module):
    """The policy's prior and fusion rule around a projector of its own; see `PriorBranch`."""

    def __init__(self, config: VsiConfig, *, width: int, prior: AnyPrior | None = None) -> None:
        """Build the branch.

        Raises:
            ContractError: The prior or the fusion rule has no use for grids of any size.
        """
        super().__init__()
        vision = config.vision
        unfit = [f"fusion {vision.fusion.name}"] * (
            vision.fusion.name in ("cross_attention", "sequence_concat")
        ) + [f"prior {vision.prior.name}"] * (vision.prior.name == "layer_norm")
        if unfit:
            raise ContractError(
                f"{' and '.join(unfit)} cannot be used for videos, whose grids are not square; choose "
                "another"
            )
        self.prior: AnyPrior | None = None
        self.projector: PatchMerger | None = None
        if vision.fusion.uses_prior:
            self.prior = build_prior(vision.prior) if prior is None else prior
            self.projector = PatchMerger(
                source=vision.prior.width, hidden=config.merger_hidden, width=width
            )
        self.fusion = build_fusion(vision.fusion, width=width, grid=0)

    def fuse(self, semantic: Tensor, features: Tensor | None, *, grid: tuple[int, int]) -> Fused:
        """Fuse tokens (v, n, d) with features (v, r, k, c) of the same frames; tokens stay so shaped."""
        if self.projector is None or features is None:
            gate = semantic.new_ones(*semantic.shape[:-1], 1) if self.fusion.has_gate else None
            return Fused(tokens=semantic, gate=gate)
        return self.fusion(semantic, self.projector(features, grid=grid).to(semantic.dtype))


class VsiModel(SceneModel):
    """Answer questions about videos."""

    separator = ""

    def __init__(
        self,
        config: VsiConfig,
        *,
        backbone: Qwen2_5_VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        prior: AnyPrior | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            config: Settings.
            backbone: Vision and language model.
            tokenizer: Knows the tokens around a frame.
            prior: A frozen prior; None makes one with random weights.

        Raises:
            ContractError: Parts do not fit each other.
        """
        sizes: Any = backbone.config
        branch = MergedBranch(config, width=sizes.text_config.hidden_size, prior=prior)
        super().__init__(backbone=backbone, tokenizer=tokenizer, chat=config.chat, branch=branch)
        self.config = config
        self.patch_px = int(sizes.vision_config.patch_size)
        sizes.image_token_id = self.token_id(IMAGE if config.chat == "plain" else QWEN_IMAGE)
        sizes.vision_start_token_id = self.token_id(VISION_START)
        sizes.vision_end_token_id = self.token_id(VISION_END)

    def save_pretrained(self, path: Path | str) -> None:
        """Write everything; see `checkpoint`."""
        save_parts(
            path,
            kind=KIND,
            config=self.config,
            backbone=self.backbone,
            tokenizer=self.tokenizer,
            prior=self.branch.prior,
            heads=self.head_state_dict(),
        )

    @classmethod
    def from_pretrained(cls, path: Path | str, *, dtype: torch.dtype | None = None) -> Self:
        """Read what `save_pretrained` wrote; see `ScanNetModel.from_pretrained`."""
        parts = load_parts(
            path,
            kind=KIND,
            config=VsiConfig,
            backbone=Qwen2_5_VLForConditionalGeneration,
            dtype=dtype,
        )
        model = cls(
            parts.config, backbone=parts.backbone, tokenizer=parts.tokenizer, prior=parts.prior
        )
        model.load_head_state_dict(parts.heads)
        return model.eval()

    @property
    def unit_px(self) -> int:
        """Pixels of one token along one side; what `video_inputs` cuts frames to."""
        return MERGE * self.patch_px

    def prior_features(
        self, scene: SceneInputs, *, key: int | None = None, store: FeatureStore | None = None
    ) -> Tensor | None:
        """Return the frozen features (v, r, k, c) of a video on the prior's own grid.

        Args:
            scene: Its frames.
            key: Of the prior's noise.
            store: Of `open_store`, for videos of this size.
        """
        prior = self.branch.prior
        if prior is None:
            return None
        pixels, keys = scene.pixels.unsqueeze(0), [0 if key is None else key]
        if key is None and self.config.vision.prior.noise == "keyed":
            raise ValueError("the prior draws its noise from keys and none was given; pass one")
        if store is None:
            tokens, grid = self._native(pixels, keys)
            return tokens[0].unflatten(1, grid)
        grid = self._grid_in(store)
        found = store.read(pixels, keys=keys, compute=lambda p, k: self._native(p, k)[0])
        return found[0].to(self.device, torch.float32).unflatten(1, grid)

    def open_store(
        self, root: Path | str, scene: SceneInputs, *, dtype: FeatureDtype = "float32"
    ) -> FeatureStore:
        """Open the policy's kind of feature store for videos of one frame size.

        Args:
            root: Folder of the stores of all priors.
            scene: Any video of the size; the prior runs once to see its own grid.
            dtype: How features are kept.

        Raises:
            ContractError: The prior has no weights, so that there is nothing worth storing.
        """
        identity = PriorIdentity.of(self.branch.prior)
        tokens, (rows, columns) = self._native(scene.pixels[None, :1], [0])
        return FeatureStore(
            root,
            dataclasses.replace(
                identity,
                fingerprint=f"{identity.fingerprint}-{rows}x{columns}",
                shape=(rows * columns, tokens.shape[-1]),
            ),
            dtype=dtype,
        )

    def encode(
        self,
        inputs: Sequence[SceneInputs],
        *,
        prior_features: Sequence[Tensor | None] | None = None,
        keys: Sequence[int] | None = None,
        store: FeatureStore | None = None,
    ) -> VideoTokens:
        """Turn videos into tokens, each in a pass of its own.

        Args:
            inputs: Of `video_inputs`, with sides that are multiples of ``unit_px``.
            prior_features: (v, r, k, c) for each video; None runs the prior.
            keys: One per video, for a prior with keyed noise.
            store: See `prior_features`.
        """
        rows: list[tuple[Tensor, tuple[int, int], Tensor | None]] = []
        for i, scene in enumerate(inputs):
            semantic, grid = self.semantic_tokens(scene.pixels.to(self.device))
            features = None if prior_features is None else prior_features[i]
            if features is None:
                key = None if keys is None else keys[i]
                features = self.prior_features(scene, key=key, store=store)
            fused = self.branch.fuse(semantic, features, grid=grid)
            gate = None if fused.gate is None else fused.gate.flatten(0, 1)
            rows.append((fused.tokens, grid, gate))
        tokens, grids, gates = zip(*rows, strict=True)
        return VideoTokens(tokens=tokens, grids=grids, gates=gates)

    def semantic_tokens(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the backbone's merged tokens (v, n, d) of frames (v, 3, h, w), and the patch grid.

        Raises:
            ContractError: The frames are not cut to whole tokens.
        """
        height, width = pixels.shape[-2:]
        if height % self.unit_px or width % self.unit_px:
            raise ContractError(
                f"frames are {width}x{height}, expected multiples of {self.unit_px}; make them with "
                f"video_inputs(unit_px={self.unit_px})"
            )
        grid = (height // self.patch_px, width // self.patch_px)
        thw = torch.tensor([[1, *grid]] * len(pixels), device=pixels.device)
        seen = self.backbone.model.get_image_features(
            patches(pixels, patch_px=self.patch_px), thw, return_dict=True
        )
        return torch.stack(list(seen.pooler_output)), grid

    def scene_ids(self, tokens: VideoTokens, index: int) -> list[int]:
        """Return the placeholders of a video: those of each frame between two delimiters."""
        sizes = self.backbone.config
        v, n = tokens.tokens[index].shape[:2]
        frame = [
            sizes.vision_start_token_id,
            *[sizes.image_token_id] * n,
            sizes.vision_end_token_id,
        ]
        return frame * v

    def hand_in(
        self,
        tokens: VideoTokens,
        ids: Tensor,
        mask: Tensor,  # noqa: ARG002
        coords: Sequence[Tensor] | None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Hand the frames in as images; the backbone finds their positions from the grids."""
        thw = [[1, *g] for t, g in zip(tokens.tokens, tokens.grids, strict=True) for _ in t]
        frames = [one for video in tokens.tokens for one in video]
        return {
            "mm_encoder_outputs": {
                "image": BaseModelOutputWithPooling(pooler_output=frames)  # pyright: ignore[reportArgumentType]
            },
            "image_grid_thw": torch.tensor(thw, device=ids.device),
            "mm_token_type_ids": (ids == self.backbone.config.image_token_id).int(),
        }

    def _native(self, pixels: Tensor, keys: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:
        prior = self.branch.prior
        if prior is None or isinstance(prior, LayerNormPrior):
            raise RuntimeError("there is no prior that reads frames")
        frames = pixels.to(self.device).float() / 127.5 - 1
        tokens, grid = prior.native_features(frames, keys=keys)
        return tokens.float(), grid

    @staticmethod
    def _grid_in(store: FeatureStore) -> tuple[int, int]:
        rows, columns = store.identity.fingerprint.rsplit("-", 1)[-1].split("x")
        return int(rows), int(columns)


def patches(pixels: Tensor, *, patch_px: int) -> Tensor:
    """Return Qwen's patch rows of frames (v, 3, h, w) uint8: (v * gh * gw, 3 * 2 * patch_px**2).

    Patches follow each other in blocks of two by two, and each frame stands twice along time: a
    still picture is a video of two equal frames.
    """
    mean, std = (
        torch.tensor(x, device=pixels.device).view(3, 1, 1) for x in (PIXEL_MEAN, PIXEL_STD)
    )
    x = (pixels.float() / 255 - mean) / std
    x = x.unflatten(3, (-1, MERGE, patch_px)).unflatten(2, (-1, MERGE, patch_px))
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)  # v, block row, block column, row, column, 3, p, p
    return x.unsqueeze(6).expand(*x.shape[:6], 2, *x.shape[6:]).flatten(6).flatten(5).flatten(0, 4)
