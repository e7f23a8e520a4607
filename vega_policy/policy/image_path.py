"""OpenVLA-OFT's image path, from a camera's frame to the model's pixels, without TensorFlow.

The published policies were trained on frames that had been through a JPEG file, so evaluation sends
every frame through one as well: encode, decode, resize with Lanczos, round, crop the centre. A model
notices each of these steps; the equalities and what each shortcut costs are in `docs/inference.md`.

Shape legend: ``n`` images, ``h``/``w`` pixels of a camera's frame, ``px`` side of the model's image.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CROP_SIDE = np.sqrt(np.float32(0.9))
"""Share of the side that the centre crop keeps: training crops had 0.9 of the area."""
_QUALITY, _CHROMA_HALVED = 95, 2
_BANDS = 8


def exact(images: Sequence[NDArray[np.uint8]], *, px: int) -> Tensor:
    """Prepare images as in the published evaluation.

    Equal to TensorFlow's result but for one grey level in fewer than 0.2 % of the values (sums that
    fall on a half). An image of the model's own size goes straight to the crop, as in the original.

    Args:
        images: Of any size each, (h, w, 3) RGB.
        px: Side of the model's image.

    Returns:
        (n, 3, px, px) uint8.

    Raises:
        ContractError: The JPEG decoder is not installed.
    """
    fitted: list[Tensor | None] = [None] * len(images)
    by_size: dict[tuple[int, int], list[int]] = {}
    for i, image in enumerate(images):
        by_size.setdefault((image.shape[0], image.shape[1]), []).append(i)
    for size, places in by_size.items():
        frames = [images[i] for i in places]
        if size == (px, px):
            group = planes(frames)
        else:
            group = lanczos(planes([through_jpeg(f) for f in frames]), px=px)
        for i, one in zip(places, group, strict=True):
            fitted[i] = one
    return centre_crop(torch.stack([f for f in fitted if f is not None]))


def fast(images: Sequence[NDArray[np.uint8]], *, px: int, crop: bool) -> Tensor:
    """Resize with torch's antialiased bicubic filter and optionally crop the centre.

    No JPEG file in between, so a published policy sees about 1.3 grey levels of difference.

    Args:
        images: Of any size each, (h, w, 3) RGB.
        px: Side of the model's image.
        crop: Keep the part of the image that `exact` keeps.

    Returns:
        (n, 3, px, px) uint8.
    """
    fitted = torch.stack([_bicubic(planes([image])[0], px) for image in images])
    return centre_crop(fitted) if crop else fitted


def through_jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return what a JPEG file of quality 95 with halved chroma leaves of an (h, w, 3) image.

    Decoded with the integer transform that TensorFlow takes; Pillow's, the accurate one, differs in
    60 % of the values.
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=_QUALITY, subsampling=_CHROMA_HALVED)
    return decode_jpeg(file.getvalue())


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG file as TensorFlow does.

    Raises:
        ContractError: simplejpeg is not installed.
    """
    try:
        import simplejpeg
    except ImportError as error:
        raise ContractError(
            "image_transform=exact needs simplejpeg, the only decoder here that equals the one the "
            "policy was trained with, and it is not installed; pip install simplejpeg, or set "
            "image_transform=fast for an approximation"
        ) from error
    return simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=True, fastupsample=False)


def lanczos(images: Tensor, *, px: int) -> Tensor:
    """Resize (n, 3, h, w) uint8 to (n, 3, px, px) uint8: antialiased, three lobes, rounded once."""
    return lanczos_float(images, px=px).round().clamp(0, 255).to(torch.uint8)


def lanczos_float(images: Tensor, *, px: int) -> Tensor:
    """Resize (n, 3, h, w) uint8 to (n, 3, px, px) float32, in grey levels, not rounded."""
    rows, columns = (_lanczos_bands(side, px) for side in images.shape[2:])
    grey = images.float()
    resized = torch.cat([weights @ grey[:, :, seen] for seen, weights in rows], dim=2)
    return torch.cat([resized[..., seen] @ weights.T for seen, weights in columns], dim=3)


def centre_crop(images: Tensor) -> Tensor:
    """Crop 0.9 of the area of (n, 3, px, px) uint8 images and enlarge it to the same size."""
    # 255.5 and truncation, not 255 and rounding: TensorFlow's conversion to uint8.
    return (centre_crop_float(images) * 255.5).to(torch.uint8)


def centre_crop_float(images: Tensor) -> Tensor:
    """Crop like `centre_crop`; return (n, 3, px, px) float32 in [0, 1].

    The corners of the box fall on the centres of the outermost pixels (align-corners), and the order
    of the operations is TensorFlow's, so that the bits are.
    """
    low, high, share = _crop_places(images.shape[-1])
    grey = images.float() * float(np.float32(1 / 255))
    rows = torch.lerp(grey.index_select(3, low), grey.index_select(3, high), share)
    crop = torch.lerp(rows.index_select(2, low), rows.index_select(2, high), share[:, None])
    return crop.clamp_(0, 1)


@lru_cache(maxsize=32)
def _lanczos_bands(source: int, target: int) -> list[tuple[slice, Tensor]]:
    """Cut the matrix of the resize into bands: the pixels seen and (rows, pixels) weights of each.

    A result reads half a dozen pixels, so a whole product would mostly multiply zeros.
    """
    bands: list[tuple[slice, Tensor]] = []
    for rows in _lanczos_weights(source, target).chunk(_BANDS):
        places = rows.any(0).nonzero().flatten().tolist()
        seen = slice(places[0], places[-1] + 1)
        bands.append((seen, rows[:, seen].contiguous()))
    return bands


def _lanczos_weights(source: int, target: int) -> Tensor:
    """Return (target, source) float32, each row summing to 1."""
    step = np.float32(source / target)
    stretch = max(step, np.float32(1))
    centres = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * step
    pixels = np.arange(source, dtype=np.float32) + np.float32(0.5)
    x = np.abs((pixels - centres[:, None]) / stretch).astype(np.float64)
    weights = np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return torch.from_numpy((weights / weights.sum(1, keepdims=True)).astype(np.float32))


@lru_cache(maxsize=32)
def _crop_places(px: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lower and upper neighbour of every place and the upper one's share, (px,) each."""
    first = (np.float32(1) - CROP_SIDE) / np.float32(2)
    last = first + CROP_SIDE
    step = (last - first) * np.float32(px - 1) / np.float32(px - 1)
    places = first * np.float32(px - 1) + np.arange(px, dtype=np.float32) * step
    low = np.floor(places)
    return (
        torch.from_numpy(low.astype(np.int64)),
        torch.from_numpy(np.ceil(places).astype(np.int64)),
        torch.from_numpy(places - low),
    )


def _bicubic(image: Tensor, px: int) -> Tensor:
    if image.shape[1:] == (px, px):
        return image
    resized = functional.interpolate(image[None].float(), (px, px), mode="bicubic", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def planes(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Return (n, 3, h, w) of (h, w, 3) images."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
