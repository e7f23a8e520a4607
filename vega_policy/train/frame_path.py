"""What recorded frames go through before a policy trains on them: its own image path, once.

Published policies saw frames that had been JPEG files and were resized with Lanczos; the crop comes
later, at random in training and at the centre in evaluation. Without random crops the centre is cut
here, so that training and evaluation see the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vega_policy.data.frames import FrameTransform
from vega_policy.policy import image_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from vega_policy.data.augment import AugmentConfig
    from vega_policy.policy.config import PolicyConfig


def frame_transform(config: PolicyConfig, augment: AugmentConfig) -> FrameTransform | None:
    """Return the change, or None where the policy takes frames as they were recorded.

    Args:
        config: Of the policy.
        augment: Of the run.
    """
    px = config.image_px
    crops_later = augment.crop > 0

    def exact(images: Sequence[NDArray[np.uint8]]) -> Tensor:
        if not crops_later:
            return image_path.exact(images, px=px)
        files = torch.stack([image_path.planes([image_path.through_jpeg(i)])[0] for i in images])
        return image_path.lanczos(files, px=px)

    def exact_of_jpeg(images: Sequence[NDArray[np.uint8]]) -> Tensor:
        fitted = image_path.lanczos(image_path.planes(list(images)), px=px)
        return fitted if crops_later else image_path.centre_crop(fitted)

    def fast(images: Sequence[NDArray[np.uint8]]) -> Tensor:
        return image_path.fast(images, px=px, crop=config.centre_crop and not crops_later)

    if config.image_transform == "none":
        return None
    apply = {"exact": exact, "fast": fast}[config.image_transform]
    suffix = "-uncropped" if crops_later else ""
    return FrameTransform(
        name=f"{config.image_transform}-{px}{suffix}",
        px=px,
        apply=apply,
        # A second JPEG file would be one more than published policies were trained with.
        apply_to_jpeg=exact_of_jpeg if config.image_transform == "exact" else None,
    )
