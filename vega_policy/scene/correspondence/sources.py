"""Sources that run a network: priors, and the semantic towers of a policy.

Shape legend: ``v`` views, ``n`` tokens of one view, ``c`` channels, ``h, w`` pixels.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from vega_policy.scene.correspondence.features import WHOLE, FeatureMap, Window
from vega_policy.scene.heads.inputs import resize_frames
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from vega_policy.scene.scan import Scan
    from vega_policy.vision.prior import AnyPrior
    from vega_policy.vision.semantic import SemanticTowers

_BATCH = 8
"""Views that pass through a network at once."""


class PriorSource:
    """A prior's features, pooled to its ``grid`` as the policy gets them.

    Every view is an observation of its own, with a key of its own (for ``noise="keyed"``), unless the
    prior takes ``frames="clip"``: then the scan is one video.
    """

    def __init__(self, prior: AnyPrior, *, name: str, device: str = "cpu") -> None:
        """Keep the prior.

        Args:
            prior: It is moved to the device.
            name: In the table.
            device: Where it runs.

        Raises:
            ContractError: The prior is fed by semantic towers and sees no frame.
        """
        if prior.reads_semantic:
            raise ContractError(
                f"prior {prior.config.name} repeats the semantic towers' tokens; score the towers "
                "themselves"
            )
        self._prior = prior.to(device)
        self._device = device
        self._name = name

    @property
    def name(self) -> str:
        """See `Source`."""
        return self._name

    def __call__(self, scan: Scan) -> FeatureMap:
        """See `Source`."""
        config = self._prior.config
        images = np.stack([frame.image for frame in scan.frames]).transpose(0, 3, 1, 2)
        # Of the frame alone, so that neither order nor batch changes a feature.
        keys = [zlib.crc32(f"{scan.scene_id}/{frame.index}".encode()) for frame in scan.frames]
        parts: list[torch.Tensor] = []
        is_clip = config.frames == "clip"
        step = len(images) if is_clip else _BATCH
        for start in range(0, len(images), step):
            pixels = torch.from_numpy(images[start : start + step]).to(self._device)
            pixels = pixels.float() / 127.5 - 1.0
            if is_clip:
                found = self._prior.features(pixels[None], keys=keys[:1])[0]
            else:
                found = self._prior.features(pixels[:, None], keys=keys[start : start + step])[:, 0]
            parts.append(found.cpu())
        tokens = torch.cat(parts).unflatten(1, (config.grid, config.grid)).numpy()
        window = WHOLE
        if config.align == "upstream":
            window = crop_window((images.shape[2], images.shape[3]), config.frame_size)
        return FeatureMap(tokens=tokens, window=window)


class TowerSource:
    """The semantic tokens of a policy: what the prior is fused into."""

    def __init__(self, towers: SemanticTowers, *, name: str) -> None:
        """Keep the towers.

        Raises:
            ContractError: They read the instruction too.
        """
        if towers.config.film:
            raise ContractError(
                "towers with FiLM see the instruction, a scan has none; score a policy without FiLM"
            )
        self._towers = towers
        self._name = name

    @property
    def name(self) -> str:
        """See `Source`."""
        return self._name

    @torch.no_grad()
    def __call__(self, scan: Scan) -> FeatureMap:
        """See `Source`; frames are stretched to the towers' square."""
        side, grid = self._towers.config.image_px, self._towers.config.grid
        pixels = resize_frames([frame.image for frame in scan.frames], size=(side, side))
        device = next(self._towers.parameters()).device
        parts = [
            self._towers(pixels[start : start + _BATCH, None].to(device))[:, 0].float().cpu()
            for start in range(0, len(pixels), _BATCH)
        ]
        return FeatureMap(tokens=torch.cat(parts).unflatten(1, (grid, grid)).numpy())


def crop_window(size: tuple[int, int], frame_size: tuple[int, int]) -> Window:
    """Return the part of an image (h, w) that `framing.cover_and_crop` keeps."""
    scale = max(target / length for target, length in zip(frame_size, size, strict=True))
    edges: list[tuple[float, float]] = []
    for target, length in zip(frame_size, size, strict=True):
        grown = round(length * scale)
        start = (grown - target) // 2
        edges.append((start / grown, (start + target) / grown))
    (top, bottom), (left, right) = edges
    return (top, left, bottom, right)
