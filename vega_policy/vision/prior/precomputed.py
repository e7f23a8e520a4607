"""Features that another program made: for VGGT, SEVA and Vmem, which no library we accept has.

One safetensors file for each frame, found by the frame's content and never by its place in a data
set, so that training, rollouts and other users share them:

``<features_dir>/<first two digits>/<digest>.safetensors``

- the digest is the first 16 bytes, in hexadecimal, of the SHA-256 of the ASCII text
  ``uint8 (3, <height>, <width>)`` followed by the frame's bytes, channel after channel, row after row
  (RGB, the image as the policy gets it: after its own resizing, before the prior's);
- tensor ``features`` (rows, columns, width) in float16, bfloat16 or float32;
- metadata ``backbone``: free text that says what made them.

Shape legend: ``b`` batch, ``v`` views (cameras), ``f`` frames, ``c`` width.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vega_policy.spec.errors import ContractError
from vega_policy.spec.files import atomic_path
from vega_policy.vision.prior.frozen import WeightlessPrior
from vega_policy.vision.prior.parts import refuse_settings
from vega_policy.vision.prior.store import frame_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vega_policy.vision.prior.config import PriorConfig

FEATURES_KEY = "features"


class PrecomputedPrior(WeightlessPrior):
    """Looks every frame up in ``config.features_dir``.

    It suits a fixed set of frames. Augmented images are new frames, and so are those of a rollout:
    their features must be there too, or the lookup says which frame is missing.
    """

    def __init__(self, config: PriorConfig) -> None:
        """Name the folder.

        Raises:
            ContractError: No folder is named, or it does not exist.
        """
        super().__init__(config)
        refuse_settings(config)
        if not config.features_dir or not Path(config.features_dir).is_dir():
            raise ContractError(
                f"prior precomputed reads feature files, and prior.features_dir is "
                f"{config.features_dir!r}, which is no directory; name the folder that "
                "write_features filled"
            )
        self.folder = Path(config.features_dir)

    def encode(self, frames: Tensor, *, keys: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:  # noqa: ARG002
        """Look the frames up; see `FrozenPrior.encode`.

        Raises:
            ContractError: A frame has no file, or its features do not fit.
        """
        maps = [self._read(frame) for frame in _bytes_of(frames.flatten(0, 1))]
        grids = {(m.shape[0], m.shape[1]) for m in maps}
        if len(grids) > 1:
            raise ContractError(
                f"feature files in {self.folder} have grids {sorted(grids)}; make them alike"
            )
        tokens = torch.stack(maps).flatten(1, 2).unflatten(0, frames.shape[:2])
        return tokens.to(frames.device), grids.pop()

    def _read(self, frame: NDArray[np.uint8]) -> Tensor:
        path = feature_path(self.folder, frame)
        if not path.is_file():
            raise ContractError(
                f"no features for frame {path.stem} of {frame.shape[1]}x{frame.shape[2]} pixels in "
                f"{self.folder}; make them with the backbone and store them with "
                "vega_policy.vision.prior.precomputed.write_features"
            )
        features = load_file(path)[FEATURES_KEY]
        if features.ndim != 3 or features.shape[2] != self.width:
            raise ContractError(
                f"{path} holds features {tuple(features.shape)}, expected (rows, columns, "
                f"{self.width}); set prior.width or use the folder of this backbone"
            )
        return features.float()


def feature_path(folder: Path | str, frame: NDArray[np.uint8]) -> Path:
    """Return where the features of a frame (3, h, w) lie."""
    digest = frame_digest(frame).hex()
    return Path(folder) / digest[:2] / f"{digest}.safetensors"


def write_features(
    folder: Path | str, frames: NDArray[np.uint8], features: Tensor, *, backbone: str
) -> list[Path]:
    """Store features where `PrecomputedPrior` finds them.

    Args:
        folder: Becomes ``prior.features_dir``.
        frames: (f, 3, h, w) RGB, the very images the policy will get.
        features: (f, rows, columns, c) floats, in the precision they are to be kept in.
        backbone: What made them, for a reader ("VGGT-1B, last block, 196 px").

    Returns:
        The files, in order; equal frames share one.

    Raises:
        ValueError: Frames are not uint8 (f, 3, h, w), or features are not (f, rows, columns, c).
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, expected uint8 (f, 3, h, w)")
    if features.ndim != 4 or len(features) != len(frames) or not features.is_floating_point():
        raise ValueError(
            f"features are {features.dtype} {tuple(features.shape)}, expected floats "
            f"({len(frames)}, rows, columns, width)"
        )
    paths: list[Path] = []
    for frame, one in zip(frames, features.detach().cpu(), strict=True):
        path = feature_path(folder, frame)
        with atomic_path(path) as temporary:
            save_file({FEATURES_KEY: one.contiguous().clone()}, temporary, {"backbone": backbone})
        paths.append(path)
    return paths


def _bytes_of(frames: Tensor) -> NDArray[np.uint8]:
    """Return frames (f, 3, h, w) in [-1, 1] as the uint8 they were made from."""
    return ((frames.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
