"""From observations to tensors.

Shape legend: ``b`` batch, ``v`` views (cameras), ``l`` prompt tokens, ``p`` numbers of the
proprioception.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vega_policy.policy import image_path
from vega_policy.policy.config import ImageTransform
from vega_policy.policy.tokenizer import prompt_of
from vega_policy.spec import CAMERAS, ContractError
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from vega_policy.policy.config import PolicyConfig
    from vega_policy.spec import Observation

IMAGE_TRANSFORMS: tuple[str, ...] = typing.get_args(ImageTransform)
_MOST_PROMPTS = 1024


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
            ContractError: No image transform has this name.
        """
        self.config = config
        self.tokenizer = tokenizer
        self.image_transform: ImageTransform = image_transform or config.image_transform
        require_name(self.image_transform, IMAGE_TRANSFORMS, what="image_transform")
        self.prompt_lengths: tuple[int, ...] = ()
        """Lengths that prompts are padded to, rising; longer ones and an empty tuple leave the
        longest of a batch to decide. A compiled model is compiled once per length."""
        self._prompts: dict[str, list[int]] = {}
        padding: Any = tokenizer.pad_token_id
        self._padding = int(padding or 0)

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
        cameras = self.config.cameras
        pixels = self._transform([o.images[name] for o in batch for name in cameras])
        proprio = np.stack([np.asarray(o.proprio, dtype=np.float32) for o in batch])
        return Inputs(
            pixels.unflatten(0, (len(batch), len(cameras))), torch.from_numpy(proprio), ids, mask
        )

    def tokenise(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return ids and mask, both (b, l) int64, of the prompts of these instructions."""
        prompts = [self._prompt_ids(i) for i in instructions]
        longest = max(map(len, prompts))
        length = next((n for n in self.prompt_lengths if n >= longest), longest)
        ids = torch.full((len(prompts), length), self._padding)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
            mask[row, : len(prompt)] = 1
        return ids, mask

    def images(self, images: Mapping[str, NDArray[np.uint8]]) -> Tensor:
        """Return (v, 3, px, px) uint8 of (h, w, 3) images, cameras in the policy's order."""
        return self._transform([images[name] for name in self.config.cameras])

    def _transform(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        px = self.config.image_px
        if self.image_transform == "exact":
            return image_path.exact(images, px=px)
        if self.image_transform == "fast":
            return image_path.fast(images, px=px, crop=self.config.centre_crop)
        return image_path.planes(images)

    def _prompt_ids(self, instruction: str) -> list[int]:
        """Return the ids of an instruction's prompt; an episode asks for the same one every time."""
        found = self._prompts.get(instruction)
        if found is None:
            if len(self._prompts) >= _MOST_PROMPTS:
                self._prompts.clear()
            found = list(self.tokenizer(prompt_of(instruction))["input_ids"])
            self._prompts[instruction] = found
        return found

    def _problems(self, observation: Observation, name: str) -> list[str]:
        """List what is wrong with an observation."""
        problems = [
            f"{name} has an image {other!r}, which is no camera of this policy; pass "
            f"{', '.join(self.config.cameras)}"
            for other in observation.images
            if other not in (*self.config.cameras, *CAMERAS)
        ]
        for camera in self.config.cameras:
            image: Any = observation.images.get(camera)
            if image is None:
                problems.append(
                    f"{name} has no camera {camera!r} (it has "
                    f"{', '.join(observation.images) or 'none'}); the checkpoint was trained with "
                    "it and no image can stand in for it"
                )
            else:
                problems += self._image_problems(image, f"{name}, camera {camera!r}")
        found, size = np.shape(observation.proprio), self.config.proprio_size
        if size and found != (size,):
            problems.append(
                f"{name}: proprio is {found}, the checkpoint was trained with ({size},); see "
                "spec.Observation for its layout"
            )
        return problems + self._instruction_problems(observation.instruction, name)

    def _image_problems(self, image: object, where: str) -> list[str]:
        side = self.config.image_px
        if not isinstance(image, np.ndarray):
            return [f"{where}: image is a {type(image).__name__}, expected uint8 (h, w, 3)"]
        is_picture = image.ndim == 3 and image.shape[2] == 3 and image.size > 0
        if image.dtype != np.uint8 or not is_picture:
            return [
                f"{where}: image is {image.dtype} {image.shape}, expected uint8 (h, w, 3), RGB in "
                "0 to 255"
            ]
        if self.image_transform == "none" and image.shape[:2] != (side, side):
            return [
                f"{where}: image is {image.shape[:2]}, the model's size is ({side}, {side}); "
                "render at that size or set image_transform=fast"
            ]
        return []

    def _instruction_problems(self, instruction: object, name: str) -> list[str]:
        if not isinstance(instruction, str) or not instruction.strip():
            return [f"{name}: instruction is {instruction!r}, expected the task in words"]
        most = self.config.max_prompt_tokens
        found = len(self._prompt_ids(instruction))
        if found > most:
            return [
                f"{name}: the instruction makes a prompt of {found} tokens, the context of "
                f"{self.config.language.max_positions} has room for {most} beside images and "
                "actions; shorten it"
            ]
        return []
