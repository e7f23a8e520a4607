"""Augmentation of image batches, drawn from explicit seeds.

Brightness and contrast change only what the semantic towers see, so cached prior features stay those
of the recorded frame. A shift moves the whole image and therefore needs the prior to run on the
moved one.

Shape legend: ``b`` batch, ``v`` cameras, ``h, w`` image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths; 0 switches a part off."""

    brightness: float = 0.0
    """Largest change, as a share of full white."""
    contrast: float = 0.0
    """Largest relative change of the distance from the image's mean."""
    shift_px: int = 0
    """Largest shift along each axis; borders are repeated. Not with cached prior features."""

    @property
    def is_photometric(self) -> bool:
        """Whether colours change."""
        return self.brightness > 0 or self.contrast > 0


def photometric(pixels: Tensor, config: AugmentConfig, *, seed: tuple[int, int]) -> Tensor:
    """Change brightness and contrast, each camera on its own.

    Args:
        pixels: (b, v, 3, h, w) in [0, 255], uint8 or float.
        config: Strengths.
        seed: Of the run, and the number of the batch.

    Returns:
        (b, v, 3, h, w) float32 in [0, 255].
    """
    b, v = pixels.shape[:2]
    draws = torch.rand(2, b, v, 1, 1, 1, generator=_generator(seed, stream=0)) * 2 - 1
    shift, factor = draws.to(pixels.device)
    factor = 1 + config.contrast * factor
    images = pixels.float()
    # A sixteenth of the pixels gives the mean to a grey level, at a sixteenth of the time.
    mean = images[..., ::4, ::4].mean(dim=(-3, -2, -1), keepdim=True)
    offset = mean * (1 - factor) + 255.0 * config.brightness * shift
    changed = images.clone() if images is pixels else images
    return changed.mul_(factor).add_(offset).clamp_(0, 255)


def shifted(pixels: Tensor, *, shift_px: int, seed: tuple[int, int]) -> Tensor:
    """Move each image by up to ``shift_px`` along each axis, repeating its border.

    Args:
        pixels: (b, v, 3, h, w) uint8 or float.
        shift_px: Largest shift.
        seed: Of the run, and the number of the batch.
    """
    b, v, _, height, width = pixels.shape
    generator = _generator(seed, stream=1)
    draws = torch.randint(0, 2 * shift_px + 1, (b * v, 2), generator=generator)
    padded = functional.pad(pixels.flatten(0, 1).float(), (shift_px,) * 4, mode="replicate")
    moved = [
        image[:, y : y + height, x : x + width]
        for image, (y, x) in zip(padded, draws.tolist(), strict=True)
    ]
    return torch.stack(moved).to(pixels.dtype).unflatten(0, (b, v))


def _generator(seed: tuple[int, int], *, stream: int) -> torch.Generator:
    mixed = (seed[0] * 1_000_003 + seed[1]) * 2 + stream
    return torch.Generator().manual_seed(mixed % 2**63)
