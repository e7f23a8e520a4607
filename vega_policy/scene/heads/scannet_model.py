"""ScanNet tasks on LLaVA-Video's architecture, with the policy's prior branch.

A frame becomes 14 rows of 14 tokens and a newline each: 210. Order of the steps: towers, projector,
bilinear 27 x 27 to 14 x 14, fusion with the prior, 3D position code, newlines.

Shape legend: ``v`` views, ``n = g * g`` tokens of one view, ``m`` patches of the towers, ``p`` points of a
patch, ``d`` width of the language model, ``c`` width of the prior, ``o`` objects.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaOnevisionForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vega_policy.scene.heads.checkpoint import load_parts, save_parts
from vega_policy.scene.heads.config import ScanNetConfig
from vega_policy.scene.heads.grounding import GroundingHead, info_nce
from vega_policy.scene.heads.object_features import (
    object_means,
    patch_points,
    patches_of_boxes,
    shares_of_boxes,
)
from vega_policy.scene.heads.position_code import cell_points, position_code
from vega_policy.scene.heads.prompts import COORD, GROUND, IMAGE
from vega_policy.scene.heads.scene_model import SceneModel
from vega_policy.spec import ContractError
from vega_policy.vision.stream import PriorBranch, VisionStream

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

    from vega_policy.scene.heads.inputs import SceneInputs
    from vega_policy.vision.prior import AnyPrior
    from vega_policy.vision.prior.store import FeatureStore

KIND = "scannet"


@dataclass(frozen=True, eq=False)
class SceneTokens:
    """What the language model and the object side read of some scenes; one entry for each."""

    tokens: tuple[Tensor, ...]
    """(v * g * (g + 1), d): fused, with position code and newlines."""
    semantic: tuple[Tensor, ...]
    """(v, m, d) projected tokens of the towers, before pooling and fusion."""
    points: tuple[Tensor | None, ...]
    """(v, m, p, 3) metres; None for a scene without depth."""
    counts: tuple[Tensor | None, ...]
    """(v, m, p) True where a point takes part."""
    gates: tuple[Tensor | None, ...]
    """(v * n, 1) weight of the semantic stream, where the fusion rule has one."""

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.tokens)

    def take(self, indices: Sequence[int]) -> SceneTokens:
        """Return some scenes, also several times over: one for each text."""
        return SceneTokens(
            tokens=tuple(self.tokens[i] for i in indices),
            semantic=tuple(self.semantic[i] for i in indices),
            points=tuple(self.points[i] for i in indices),
            counts=tuple(self.counts[i] for i in indices),
            gates=tuple(self.gates[i] for i in indices),
        )


class ScanNetModel(SceneModel):
    """Ground, caption and answer questions in posed RGB-D scans.

    ``branch`` is the class the policy uses: a whole `VisionStream`, towers included
    (``towers=policy``), or its `PriorBranch` behind the backbone's SigLIP, whose last block and final
    norm are not there (``towers=backbone``, as published).
    """

    def __init__(
        self,
        config: ScanNetConfig,
        *,
        backbone: LlavaOnevisionForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        prior: AnyPrior | None = None,
    ) -> None:
        """Put the parts together; the backbone is told which tokens stand for scene and place.

        Args:
            config: Settings.
            backbone: The language model and its own SigLIP.
            tokenizer: Knows `IMAGE`, `COORD` and `GROUND`.
            prior: A frozen prior; None makes one with random weights.

        Raises:
            ContractError: Parts do not fit each other.
        """
        if config.vision.fusion.name == "sequence_concat":
            raise ContractError(
                "fusion sequence_concat gives a frame twice the tokens, which have no rows and no "
                "place; choose another rule"
            )
        sizes: Any = backbone.config
        width = sizes.text_config.hidden_size
        if config.towers == "policy":
            branch = VisionStream(config.vision, width=width, prior=prior)
            self.image_px, self.patch_px = (
                config.vision.semantic.image_px,
                config.vision.semantic.patch_px,
            )
        else:
            tower = sizes.vision_config
            self.image_px, self.patch_px = tower.image_size, tower.patch_size
            # As the backbone itself does: half the grid, rounded up.
            grid = -(-(self.image_px // self.patch_px) // 2)
            branch = PriorBranch(config.vision, width=width, grid=grid, prior=prior)
        super().__init__(backbone=backbone, tokenizer=tokenizer, chat=config.chat, branch=branch)
        self.config = config
        self.head = GroundingHead(width=width)
        sizes.image_token_index, sizes.video_token_index = map(self.token_id, (IMAGE, COORD))
        self._ground = self.token_id(GROUND)

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
        """Read what `save_pretrained` wrote.

        Args:
            path: The directory.
            dtype: Of every weight but the frozen prior's; None keeps that of the files.

        Raises:
            CheckpointError: Something is missing or does not fit; all is listed.
        """
        parts = load_parts(
            path,
            kind=KIND,
            config=ScanNetConfig,
            backbone=LlavaOnevisionForConditionalGeneration,
            dtype=dtype,
        )
        model = cls(
            parts.config, backbone=parts.backbone, tokenizer=parts.tokenizer, prior=parts.prior
        )
        model.load_head_state_dict(parts.heads)
        return model.eval()

    @property
    def n_tokens(self) -> int:
        """Tokens of one frame, newlines included."""
        return self.branch.grid * (self.branch.grid + 1)

    def prior_features(
        self, scene: SceneInputs, *, key: int | None = None, store: FeatureStore | None = None
    ) -> Tensor | None:
        """Return the frozen features (v, n, c) of a scene, for `encode`; None where there are none.

        Args:
            scene: Its frames.
            key: Of the prior's noise; needed where it is keyed.
            store: Where they are looked up and kept; the policy's own store has them for equal frames.
        """
        pixels = scene.pixels.unsqueeze(0)
        keys = None if key is None else [key]
        if store is None or self.branch.prior is None or self.branch.prior.reads_semantic:
            found = self.branch.prior_features(pixels.to(self.device), keys=keys)
        else:
            found = store.read(pixels, keys=keys or [0], compute=self._compute).to(
                self.device, torch.float32
            )
        return None if found is None else found[0]

    def encode(
        self,
        inputs: Sequence[SceneInputs],
        *,
        prior_features: Sequence[Tensor | None] | None = None,
        keys: Sequence[int] | None = None,
        store: FeatureStore | None = None,
    ) -> SceneTokens:
        """Turn scenes into tokens, each in a pass of its own.

        Args:
            inputs: Of `scene_inputs`, of this model's ``image_px``.
            prior_features: (v, n, c) for each scene; None runs the prior.
            keys: One per scene, for a prior with keyed noise.
            store: See `prior_features`.
        """
        rows: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]] = []
        for i, scene in enumerate(inputs):
            features = None if prior_features is None else prior_features[i]
            if features is None:
                key = None if keys is None else keys[i]
                features = self.prior_features(scene, key=key, store=store)
            rows.append(self._encode_one(scene, features))
        tokens, semantic, points, counts, gates = zip(*rows, strict=True)
        return SceneTokens(
            tokens=tokens, semantic=semantic, points=points, counts=counts, gates=gates
        )

    def ground(
        self, tokens: SceneTokens, boxes: Sequence[Tensor | NDArray[Any]], texts: Sequence[str]
    ) -> list[Tensor]:
        """Score the proposals of each scene against its text.

        Args:
            tokens: Of `encode`.
            boxes: (o, 6) for each scene, centre and full size in metres, aligned frame.
            texts: Prompts, one for each scene.

        Returns:
            (o + 1,) cosines for each text; the last is the zero target, "none of them". See
            `scene.selection`.

        Raises:
            ContractError: A scene has no depth, or numbers disagree.
        """
        asked = self.ask(tokens, texts, answers=[GROUND] * len(texts))
        if len(boxes) != len(texts):
            raise ContractError(f"{len(boxes)} sets of boxes for {len(texts)} texts; pass one each")
        at = (asked.ids == self._ground) & (asked.labels == self._ground)
        states = self.read(asked)[at]
        objects = [self.object_features(tokens, i, box) for i, box in enumerate(boxes)]
        return [self.head(o, s) for o, s in zip(objects, states, strict=True)]

    def loss_ground(
        self,
        tokens: SceneTokens,
        boxes: Sequence[Tensor | NDArray[Any]],
        texts: Sequence[str],
        targets: Sequence[Sequence[int]],
    ) -> Tensor:
        """Return the mean InfoNCE loss.

        Args:
            tokens: See `ground`.
            boxes: See `ground`.
            texts: See `ground`.
            targets: For each text the boxes that are meant; none means the zero target.
        """
        scores = self.ground(tokens, boxes, texts)
        return torch.stack([info_nce(s, t) for s, t in zip(scores, targets, strict=True)]).mean()

    def object_features(
        self, tokens: SceneTokens, index: int, boxes: Tensor | NDArray[Any]
    ) -> Tensor:
        """Return (o, d): the mean semantic token of each box's surface plus the code of its centre."""
        points, counts = tokens.points[index], tokens.counts[index]
        if points is None or counts is None:
            raise ContractError(
                f"scene {index} of the batch has no depth, and boxes are found by depth; use frames "
                "with depth, or ask for text only"
            )
        boxes = torch.as_tensor(boxes, dtype=torch.float32, device=points.device).reshape(-1, 6)
        find = patches_of_boxes if self.config.patches == "half" else shares_of_boxes
        means = object_means(tokens.semantic[index], find(points, counts, boxes))
        return means if self.config.code_on == "none" else means + self.code(boxes[:, :3]).to(means)

    def code(self, points: Tensor) -> Tensor:
        """Return the position code (..., d) of points (..., 3)."""
        return position_code(points, width=self.width, config=self.config.code)

    def semantic_tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the towers say of frames (v, 3, h, w).

        Returns:
            (v, m, d) projected; the same on the token grid (v, n, d); and the towers' own tokens on
            it (v, n, e).
        """
        if isinstance(self.branch, VisionStream):
            read = self.branch.semantic(pixels.unsqueeze(0))
            projected = self.branch.semantic_projector(read)[0]
            return projected, projected, read[0]
        model = self.backbone.model
        tower = model.vision_tower
        # Not its own forward, which would run the final norm for nothing.
        weight = tower.embeddings.patch_embedding.weight
        embedded = tower.embeddings((pixels.float() / 127.5 - 1).to(weight.dtype))
        read = tower.encoder(inputs_embeds=embedded).last_hidden_state
        projected = model.multi_modal_projector(read)
        return projected, self._pooled(projected), self._pooled(read)

    def _encode_one(
        self, scene: SceneInputs, features: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        pixels = scene.pixels.to(self.device)
        if pixels.shape[1:] != (3, self.image_px, self.image_px):
            raise ContractError(
                f"frames are {tuple(pixels.shape[1:])}, the model expects (3, {self.image_px}, "
                f"{self.image_px}); make the inputs with px={self.image_px}"
            )
        fine, semantic, read = self.semantic_tokens(pixels)
        fused = self.branch.fuse(
            semantic.flatten(0, 1).unsqueeze(0),
            pixels.unsqueeze(0),
            read.unsqueeze(0),
            prior_features=None if features is None else features.unsqueeze(0).to(self.device),
        )
        grid = self.branch.grid
        tokens = fused.tokens[0].unflatten(0, (-1, grid * grid))
        if self.config.objects_from == "fused":
            if tokens.shape[:2] != fine.shape[:2]:
                raise ContractError(
                    f"objects_from=fused needs one fused token for each patch, got {tokens.shape[1]} for "
                    f"{fine.shape[1]}; use towers=policy, or objects_from=semantic"
                )
            fine = tokens
        points = counts = None
        if scene.points is not None:
            every, takes_part, patch_px = self._points(scene)
            places, known = cell_points(every, takes_part, grid=grid, patch_px=patch_px)
            if self.config.code_on == "all":
                tokens = tokens + (self.code(places) * known.unsqueeze(-1)).to(tokens)
            points = patch_points(every, patch_px=patch_px)
            counts = patch_points(takes_part, patch_px=patch_px)
        rows = tokens.unflatten(1, (grid, grid))
        newline = self.backbone.model.image_newline.to(rows).expand(*rows.shape[:2], 1, -1)
        flat = torch.cat([rows, newline], dim=2).flatten(0, 2)
        return flat, fine, points, counts, None if fused.gate is None else fused.gate[0]

    def _points(self, scene: SceneInputs) -> tuple[Tensor, Tensor, int]:
        """Return points, which of them take part, and how many of them lie along a patch."""
        points, measured = scene.points, scene.measured
        v, side = len(scene.pixels), 0 if scene.points is None else scene.points.shape[1]
        if points is None or measured is None or points.shape[:3] != (v, side, side):
            raise ContractError("points are no square maps; make the inputs with scene_inputs")
        every = self.image_px // side
        if every * side != self.image_px or self.patch_px % every:
            raise ContractError(
                f"maps of {side}x{side} points do not lie evenly in patches of {self.patch_px} pixels of "
                f"an image of {self.image_px}; make the inputs with as many points as pixels, or every "
                f"{self.patch_px}th"
            )
        points, measured = points.to(self.device), measured.to(self.device)
        takes_part = torch.ones_like(measured) if self.config.points == "all" else measured
        return points, takes_part, self.patch_px // every

    def _pooled(self, tokens: Tensor) -> Tensor:
        """Resample (v, m, e) bilinearly to (v, n, e), as the backbone does with a video."""
        side = self.image_px // self.patch_px
        image = tokens.transpose(1, 2).unflatten(2, (side, side))
        grid = self.branch.grid
        return functional.interpolate(image, (grid, grid), mode="bilinear").flatten(2).mT

    def _compute(self, pixels: Tensor, keys: Sequence[int]) -> Tensor:
        found = self.branch.prior_features(pixels.to(self.device), keys=keys)
        if found is None:
            raise RuntimeError("the prior has no features, and was found to have some before")
        return found

    def scene_ids(self, tokens: SceneTokens, index: int) -> list[int]:
        """Return one image token for each token of the scene."""
        return [self.backbone.config.image_token_index] * len(tokens.tokens[index])

    def hand_in(
        self,
        tokens: SceneTokens,
        ids: Tensor,  # noqa: ARG002
        mask: Tensor,
        coords: Sequence[Tensor] | None,
    ) -> dict[str, Any]:
        """Hand the scenes in as images and the places as videos: the two slots the backbone has."""
        handed: dict[str, Any] = {
            "image": BaseModelOutputWithPooling(pooler_output=list(tokens.tokens))  # pyright: ignore[reportArgumentType]
        }
        if coords:
            places = torch.stack([torch.as_tensor(c, dtype=torch.float32) for c in coords])
            row = self.backbone.get_input_embeddings().weight[self.token_id(COORD)]
            placed = row + self.code(places.to(self.device)).to(row)
            handed["video"] = BaseModelOutputWithPooling(pooler_output=placed.unsqueeze(1))
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return {"mm_encoder_outputs": handed, "position_ids": positions}
