"""From observations to tensors.

Shape legend: ``b`` batch, ``v`` views (cameras), ``l`` prompt tokens, ``p`` numbers of the
proprioception.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vega_policy.policy.tokenizer import prompt_of
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from vega_policy.policy.config import ImageTransform, PolicyConfig
    from vega_policy.spec import Observation


@dataclass(frozen=True, eq=False)
class Inputs:
    """What `VegaModel.forward` takes, but for the normalisation of the proprioception."""

    pixels: Tensor
    """(b, v, 3, px, px) uint8."""
    proprio: Tensor
    """(b, p) float32, as observed."""
    input_ids: Tensor
    """(b, l) int64, BOS first, padded on the right."""
    attention_mask: Tensor
    """(b, l) int64, 1 for tokens, 0 for padding."""


class Processor:
    """Resizes images, orders cameras and tokenises prompts."""

    def __init__(
        self,
        config: PolicyConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        image_transform: ImageTransform | None = None,
    ) -> None:
        """Keep the settings.

        Args:
            config: The policy's.
            tokenizer: Its tokenizer; adds BOS, pads to the right.
            image_transform: Overrides the configuration's.

        Raises:
            ContractError: The image transform is not available.
        """
        self.config = config
        self.tokenizer = tokenizer
        self.image_transform = image_transform or config.image_transform
        if self.image_transform not in ("none", "fast"):
            raise ContractError(
                f"image_transform {self.image_transform!r} is not available in this version; "
                "set image_transform=none for images of the model's size or fast to resize them"
            )

    def check(self, batch: Sequence[Observation]) -> None:
        """Refuse observations that are not what the policy was trained with.

        Raises:
            ContractError: A camera is missing, or a shape or type is wrong; every problem of every
                observation is listed.
        """
        problems = [p for i, o in enumerate(batch) for p in self._problems(o, f"observation {i}")]
        if problems:
            raise ContractError("; ".join(problems))

    def __call__(self, batch: Sequence[Observation]) -> Inputs:
        """Turn observations, which passed `check`, into tensors."""
        ids, mask = self.tokenise([o.instruction for o in batch])
        images = [self.images(o.images) for o in batch]
        proprio = np.stack([np.asarray(o.proprio, dtype=np.float32) for o in batch])
        return Inputs(torch.stack(images), torch.from_numpy(proprio), ids, mask)

    def tokenise(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return ids and mask, both (b, l) int64, of the prompts of these instructions."""
        encoded = self.tokenizer(
            [prompt_of(i) for i in instructions],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        return encoded["input_ids"], encoded["attention_mask"]

    def images(self, images: Mapping[str, NDArray[np.uint8]]) -> Tensor:
        """Return (v, 3, px, px) uint8 of (h, w, 3) images, cameras in the policy's order."""
        return torch.stack([self._resize(images[name]) for name in self.config.cameras])

    def _resize(self, image: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)  # may be read-only
        side = self.config.image_px
        if pixels.shape[1:] == (side, side):
            return pixels
        resized = functional.interpolate(
            pixels[None].float(), (side, side), mode="bicubic", antialias=True
        )
        return resized[0].round().clamp(0, 255).to(torch.uint8)

    def _problems(self, observation: Observation, name: str) -> list[str]:
        """List what is wrong with an observation."""
        problems: list[str] = []
        side = self.config.image_px
        for camera in self.config.cameras:
            image: Any = observation.images.get(camera)
            if image is None:
                problems.append(
                    f"{name} has no camera {camera!r} (it has {', '.join(observation.images)}); "
                    "the checkpoint was trained with it and no image can stand in for it"
                )
            elif image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                problems.append(
                    f"{name}, camera {camera!r}: image is {image.dtype} {image.shape}, expected "
                    "uint8 (h, w, 3)"
                )
            elif self.image_transform == "none" and image.shape[:2] != (side, side):
                problems.append(
                    f"{name}, camera {camera!r}: image is {image.shape[:2]}, the model's size is "
                    f"({side}, {side}); render at that size or set image_transform=fast"
                )
        found = np.shape(observation.proprio)
        if found != (self.config.proprio_size,):
            problems.append(
                f"{name}: proprio is {found}, the checkpoint was trained with "
                f"({self.config.proprio_size},); see spec.Observation for its layout"
            )
        return problems
