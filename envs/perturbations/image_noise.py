"""A worse camera: noise, blur or exposure on the observed images, the scene untouched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from envs.perturbations.base import Perturbation
from vega_policy.spec import CAMERAS

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOISE_LEVELS = (8.0, 16.0, 32.0)
"""Standard deviation per pixel and channel, of 255; new in every image."""
BLUR_PX = (1.0, 2.0, 3.5)
"""Standard deviation of the Gaussian blur at an image side of 256 px; scaled to other sides."""
EXPOSURE = (1.2, 1.5, 1.8)
"""Gain of all channels, or one over it."""


class ImageNoise(Perturbation):
    """One of the three for the whole episode and both cameras, drawn with equal chance."""

    def look(self, image: NDArray[np.uint8], *, camera: str, step: int) -> NDArray[np.uint8]:
        """Return the image as the worse camera gives it."""
        episode = np.random.default_rng(self.digest)
        kind, is_dark = int(episode.integers(3)), bool(episode.integers(2))
        i = self.level - 1
        if kind == 0:
            # Of its own step and camera, so that the same moment looks the same again.
            frame = np.random.default_rng([self.digest, step, CAMERAS.index(camera)])
            changed = image + frame.normal(0.0, NOISE_LEVELS[i], image.shape)
        elif kind == 1:
            changed = _blurred(image.astype(np.float64), BLUR_PX[i] * image.shape[0] / 256)
        else:
            changed = image * (1 / EXPOSURE[i] if is_dark else EXPOSURE[i])
        return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def _blurred(image: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    radius = max(1, int(np.ceil(3 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        margin = [(0, 0)] * 3
        margin[axis] = (radius, radius)
        padded = np.pad(image, margin, mode="edge")
        size = image.shape[axis]
        image = sum(
            (
                weight * padded.take(range(k, k + size), axis=axis)
                for k, weight in enumerate(kernel)
            ),
            start=np.zeros_like(image),
        )
    return image
