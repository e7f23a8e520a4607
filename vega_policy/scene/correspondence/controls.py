"""Rows a score is read against: features without a scene, without training, or of the geometry itself.

Shape legend: ``v`` views, ``r, k`` rows and columns of the token grid, ``c`` channels, ``h, w`` pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vega_policy.scene.correspondence.features import Floats, Window
    from vega_policy.scene.correspondence.matches import Matches
    from vega_policy.scene.scan import Scan

Control = Callable[["Scan", "Matches", "Window"], "Floats"]
"""Gives (v, r, k, c) for a scan on the grid of its matches."""

_WIDTH = 256
_WAVES_M = 2.0 ** np.arange(-2, 5)
"""Wavelengths of the oracle: 0.25 m to 16 m."""
_CONV_WIDTHS = (16, 32, 64, 128)


def constant(scan: Scan, matches: Matches, window: Window) -> Floats:  # noqa: ARG001
    """One vector everywhere plus 5 % of noise: it knows nothing and scores highest."""
    one = np.random.default_rng(0).normal(size=_WIDTH)
    return one + 0.05 * _draw(scan, matches)


def iid_noise(scan: Scan, matches: Matches, window: Window) -> Floats:  # noqa: ARG001
    """Unit noise at every token of every view."""
    return _draw(scan, matches)


def image_position(scan: Scan, matches: Matches, window: Window) -> Floats:  # noqa: ARG001
    """One random vector for each cell of the grid, whatever is seen there."""
    cells = np.random.default_rng(1).normal(size=(*matches.grid, _WIDTH))
    return np.broadcast_to(cells, (len(scan.frames), *cells.shape))


def patch_colour(scan: Scan, matches: Matches, window: Window) -> Floats:
    """Mean colour of each cell, three channels in [0, 1]."""
    rows, columns = matches.grid
    small = [_resized(frame.image, window, (rows, columns)) for frame in scan.frames]
    return np.stack(small) / 255.0


def random_conv(scan: Scan, matches: Matches, window: Window) -> Floats:
    """Four 3 x 3 convolutions of stride 2 with ReLU and random weights, 16 pixels to a token."""
    rng = np.random.default_rng(2)
    layers: list[Floats] = []
    width = 3
    for wider in _CONV_WIDTHS:
        layers.append(rng.normal(scale=np.sqrt(2 / (9 * width)), size=(9 * width, wider)))
        width = wider
    rows, columns = matches.grid
    maps: list[Floats] = []
    for frame in scan.frames:
        x = _resized(frame.image, window, (16 * rows, 16 * columns)) / 127.5 - 1.0
        for weight in layers:
            x = np.maximum(_patches(x) @ weight, 0.0)
        maps.append(x)
    return np.stack(maps)


def xyz_oracle(scan: Scan, matches: Matches, window: Window) -> Floats:  # noqa: ARG001
    """Sine and cosine of the token's true place, at wavelengths of 0.25 m to 16 m: pure geometry."""
    angle = 2 * np.pi * np.nan_to_num(matches.points)[..., None] / _WAVES_M
    code = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
    return code.reshape(*code.shape[:3], -1)


CONTROLS: dict[str, Control] = {
    "constant + 5 % noise": constant,
    "iid noise": iid_noise,
    "random conv net": random_conv,
    "image position only": image_position,
    "mean patch colour": patch_colour,
    "xyz oracle": xyz_oracle,
}
"""By their names in the table."""


def _draw(scan: Scan, matches: Matches) -> NDArray[np.float64]:
    rng = np.random.default_rng(zlib.crc32(scan.scene_id.encode()))
    return rng.normal(size=(len(scan.frames), *matches.grid, _WIDTH))


def _resized(image: NDArray[np.uint8], window: Window, size: tuple[int, int]) -> Floats:
    """Return (*size, 3) in [0, 255]: the mean over the pixels of each target pixel."""
    height, width = image.shape[:2]
    top, left, bottom, right = window
    box = (left * width, top * height, right * width, bottom * height)
    planes = [
        Image.fromarray(image[..., c].astype(np.float32)).resize(
            (size[1], size[0]), Image.Resampling.BOX, box=box
        )
        for c in range(3)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def _patches(x: Floats) -> Floats:
    """Return (h / 2, w / 2, 9 c): what a 3 x 3 kernel of stride 2 sees of (h, w, c), zeros around."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    h, w = x.shape[:2]
    views = [padded[i : i + h : 2, j : j + w : 2] for i in range(3) for j in range(3)]
    return np.concatenate(views, axis=-1)
