"""Augmentation of image batches, drawn from explicit seeds.

Changes of colour reach only the semantic towers, so cached prior features stay those of the recorded
frame. A shift or a crop moves the whole image and therefore needs the prior to run on the moved one.

Draws are made for the whole batch on the host, and a process that holds a part of it takes its part
of them: what happens to a sample does not depend on how many processes share the batch.

Shape legend: ``b`` batch (of this process), ``v`` cameras, ``h, w`` image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from vega_policy.data.part import WHOLE, Part


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths; 0 switches a part off."""

    style: Literal["fast", "openvla"] = "fast"
    """``openvla``: as OpenVLA-OFT was trained, rounded to grey levels at the end. ``fast`` knows
    brightness, contrast and shift, at a fraction of the time."""
    brightness: float = 0.0
    """Largest change, as a share of full white."""
    contrast: float = 0.0
    """Largest relative change of the distance from the image's mean; in the style ``openvla``, of
    each channel's own mean."""
    saturation: float = 0.0
    """Largest relative change; ``openvla`` only."""
    hue: float = 0.0
    """Largest change, in turns of the colour circle; ``openvla`` only."""
    crop: float = 0.0
    """Share of the area that is cut away before the rest is enlarged to the full size (the recipe:
    0.1); ``openvla`` only. Validation then crops the centre. Not with cached prior features."""
    shift_px: int = 0
    """Largest shift along each axis; borders are repeated. Not with cached prior features."""
    prior_dropout: float = 0.0
    """Share of the observations whose prior is left out, so that the policy learns to do without."""

    @property
    def is_photometric(self) -> bool:
        """Whether colours change."""
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0

    @property
    def is_geometric(self) -> bool:
        """Whether images move."""
        return self.shift_px > 0 or self.crop > 0

    @property
    def crop_side(self) -> float:
        """Side of the crop, as a share of the image's."""
        return math.sqrt(1 - self.crop)


def moved(
    pixels: Tensor, config: AugmentConfig, *, seed: tuple[int, int], part: Part = WHOLE
) -> Tensor:
    """Crop and shift, each camera on its own.

    Args:
        pixels: (b, v, 3, h, w) in [0, 255], uint8 or float.
        config: Strengths.
        seed: Of the run, and the number of the batch.
        part: Of the batch.
    """
    if config.crop:
        b, v = pixels.shape[:2]
        # One draw for both axes: upstream's crops slide along the diagonal, from sharing a seed.
        draws = torch.rand(b * part.count, v, generator=_generator(seed, stream=2))
        offset = part.of(draws) * (1 - config.crop_side)
        pixels = cropped(pixels, side=config.crop_side, offset=offset)
    if config.shift_px:
        pixels = shifted(pixels, shift_px=config.shift_px, seed=seed, part=part)
    return pixels


def coloured(
    pixels: Tensor, config: AugmentConfig, *, seed: tuple[int, int], part: Part = WHOLE
) -> Tensor:
    """Change colours in the configured style: (b, v, 3, h, w) float32 in [0, 255]."""
    change = photometric if config.style == "fast" else openvla_colours
    return change(pixels, config, seed=seed, part=part)


def photometric(
    pixels: Tensor, config: AugmentConfig, *, seed: tuple[int, int], part: Part = WHOLE
) -> Tensor:
    """Change brightness and contrast, each camera on its own.

    Args:
        pixels: (b, v, 3, h, w) in [0, 255], uint8 or float.
        config: Strengths.
        seed: Of the run, and the number of the batch.
        part: Of the batch.

    Returns:
        (b, v, 3, h, w) float32 in [0, 255].
    """
    b, v = pixels.shape[:2]
    draws = torch.rand(2, b * part.count, v, 1, 1, 1, generator=_generator(seed, stream=0)) * 2 - 1
    shift, factor = (part.of(d).to(pixels.device) for d in draws)
    factor = 1 + config.contrast * factor
    images = pixels.float()
    # A sixteenth of the pixels gives the mean to a grey level, at a sixteenth of the time.
    mean = images[..., ::4, ::4].mean(dim=(-3, -2, -1), keepdim=True)
    offset = mean * (1 - factor) + 255.0 * config.brightness * shift
    changed = images.clone() if images is pixels else images
    return changed.mul_(factor).add_(offset).clamp_(0, 255)


def openvla_colours(
    pixels: Tensor, config: AugmentConfig, *, seed: tuple[int, int], part: Part = WHOLE
) -> Tensor:
    """Brightness, contrast, saturation and hue in upstream's order, clipped after each.

    Ends with ``floor(255.5 x)``, upstream's way back to grey levels.

    Args:
        pixels: (b, v, 3, h, w) in [0, 255], uint8 or float.
        config: Strengths.
        seed: Of the run, and the number of the batch.
        part: Of the batch.

    Returns:
        (b, v, 3, h, w) float32 in [0, 255], whole numbers.
    """
    b, v = pixels.shape[:2]
    draws = torch.rand(4, b * part.count, v, 1, 1, 1, generator=_generator(seed, stream=3)) * 2 - 1
    brighter, steeper, purer, turn = (part.of(d).to(pixels.device) for d in draws)
    images = (pixels.float() / 255 + config.brightness * brighter).clamp(0, 1)
    mean = images.mean(dim=(-2, -1), keepdim=True)
    images = ((images - mean) * (1 + config.contrast * steeper) + mean).clamp(0, 1)
    hue, saturation, value = to_hsv(images)
    saturation = (saturation * (1 + config.saturation * purer[:, :, 0])).clamp(0, 1)
    images = from_hsv((hue + config.hue * turn[:, :, 0]) % 1, saturation, value)
    return (images.clamp(0, 1) * 255.5).floor().clamp(max=255)


def cropped(pixels: Tensor, *, side: float, offset: Tensor) -> Tensor:
    """Cut squares out of images and enlarge them to the full size, bilinearly.

    The corners of a square fall on the centres of the corner pixels (TensorFlow's
    ``crop_and_resize``), and grey levels come back as ``floor(255.5 x)``.

    Args:
        pixels: (b, v, 3, h, w) in [0, 255], uint8 or float.
        side: Of the square, as a share of the image's.
        offset: (b, v) of its corner from the image's, along both axes, in the same unit.

    Returns:
        (b, v, 3, h, w) float32, whole numbers.
    """
    b, v, _, height, width = pixels.shape
    start = (2 * offset - 1).to(pixels.device).flatten()[:, None]
    rows, columns = (
        start + 2 * side * torch.linspace(0, 1, n, device=pixels.device) for n in (height, width)
    )
    grid = torch.stack(
        [
            columns[:, None, :].expand(b * v, height, width),
            rows[:, :, None].expand(b * v, height, width),
        ],
        dim=-1,
    )
    images = pixels.flatten(0, 1).float() / 255
    taken = functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return (taken.clamp(0, 1) * 255.5).floor().clamp(max=255).unflatten(0, (b, v))


def centre_cropped(pixels: Tensor, *, side: float) -> Tensor:
    """Return the crop that evaluation makes where training crops at random."""
    return cropped(pixels, side=side, offset=torch.full(pixels.shape[:2], (1 - side) / 2))


def to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue (in turns), saturation and value, all (..., h, w) in [0, 1], of (..., 3, h, w)."""
    red, green, blue = images.unbind(-3)
    value, low = images.amax(-3), images.amin(-3)
    span = value - low
    safe = torch.where(span > 0, span, torch.ones_like(span))
    sixth = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    saturation = torch.where(value > 0, span / value.clamp(min=1e-12), torch.zeros_like(span))
    return sixth / 6 % 1, saturation, value


def from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return what `to_hsv` took apart."""
    turned = torch.stack([5 + 6 * hue, 3 + 6 * hue, 1 + 6 * hue], dim=-3) % 6
    share = torch.minimum(turned, 4 - turned).clamp(0, 1)
    return value.unsqueeze(-3) * (1 - saturation.unsqueeze(-3) * share)


def shifted(pixels: Tensor, *, shift_px: int, seed: tuple[int, int], part: Part = WHOLE) -> Tensor:
    """Move each image by up to ``shift_px`` along each axis, repeating its border.

    Args:
        pixels: (b, v, 3, h, w) uint8 or float.
        shift_px: Largest shift.
        seed: Of the run, and the number of the batch.
        part: Of the batch.
    """
    b, v, _, height, width = pixels.shape
    generator = _generator(seed, stream=1)
    draws = torch.randint(0, 2 * shift_px + 1, (b * part.count * v, 2), generator=generator)
    padded = functional.pad(pixels.flatten(0, 1).float(), (shift_px,) * 4, mode="replicate")
    moved = [
        image[:, y : y + height, x : x + width]
        for image, (y, x) in zip(padded, part.of(draws).tolist(), strict=True)
    ]
    return torch.stack(moved).to(pixels.dtype).unflatten(0, (b, v))


def _generator(seed: tuple[int, int], *, stream: int) -> torch.Generator:
    mixed = (seed[0] * 1_000_003 + seed[1]) * 2 + stream
    return torch.Generator().manual_seed(mixed % 2**63)
