"""What all priors that run a network have in common: they are frozen, and they are pooled alike.

Shape legend: ``b`` batch, ``v`` views (cameras), ``n`` tokens of one view, ``c`` width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from vega_policy.spec.errors import ContractError
from vega_policy.vision.prior.bank import from_bank
from vega_policy.vision.prior.framing import cover_and_crop, whole_frame

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

    from vega_policy.vision.prior.config import PriorConfig


class FrozenPrior(nn.Module):
    """Base of the priors: a subclass reads its network in `encode` and writes it in `save`.

    No parameter takes a gradient, ``train()`` leaves the module in evaluation mode, and autocast is
    switched off inside, so that cached features equal live ones.
    """

    reads_semantic = False
    """True of the one control that is fed the semantic tokens instead of frames."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        self.bank: Tensor | None = None
        """(k, v, 3, h, w) uint8, what is shown with ``sees="other"``; training fills it."""

    def freeze(self) -> None:
        """Freeze; the last line of a subclass's constructor."""
        self.requires_grad_(requires_grad=False)
        self.eval()

    @property
    def width(self) -> int:
        """Channels of a feature."""
        return self.config.width

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002, FBT001, FBT002
        """Stay in evaluation mode, whatever the model around does."""
        return super().train(mode=False)

    @torch.no_grad()
    def features(self, frames: Tensor, *, keys: Sequence[int]) -> Tensor:
        """Return the features on the target grid.

        Args:
            frames: (b, v, 3, h, w) RGB in [-1, 1].
            keys: One integer per observation, the only source of randomness.

        Returns:
            (b, v, n, c) float32, row-major on a grid of ``config.grid`` by ``config.grid``.

        Raises:
            ValueError: There is not one key per observation.
            ContractError: ``sees="other"`` and no bank, or one of other cameras.
        """
        tokens, grid = self.native_features(frames, keys=keys)
        with torch.autocast(frames.device.type, enabled=False):
            pooled = pool(tokens.flatten(0, 1), grid, self.config.grid)
        return pooled.float().unflatten(0, frames.shape[:2])

    @torch.no_grad()
    def native_features(
        self, frames: Tensor, *, keys: Sequence[int]
    ) -> tuple[Tensor, tuple[int, int]]:
        """Return what `features` pools: see there, and `encode` for the shapes."""
        if len(keys) != frames.shape[0]:
            raise ValueError(
                f"{len(keys)} keys for {frames.shape[0]} observations; pass one key for each"
            )
        if self.config.sees == "black":
            frames = torch.full_like(frames, -1.0)
        elif self.config.sees == "other":
            if self.bank is None:
                raise ContractError(
                    "prior.sees=other shows frames of a bank and there is none; "
                    "train with it, scripts/train.py draws the bank from the training data"
                )
            frames = from_bank(frames, self.bank)
        with torch.autocast(frames.device.type, enabled=False):
            return self.encode(frames, keys=keys)

    def encode(self, frames: Tensor, *, keys: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:
        """Run the network.

        Args:
            frames: (b, v, 3, h, w) RGB in [-1, 1].
            keys: One integer per observation.

        Returns:
            (b, v, rows * columns, c) tokens in row-major order, and (rows, columns).
        """
        raise NotImplementedError

    def framed(self, frames: Tensor, *, multiple: int) -> Tensor:
        """Return what a network is given of frames (f, 3, h, w): see ``config.align``.

        Args:
            frames: In [-1, 1].
            multiple: The sides of a picture that is not square are rounded to multiples of it; those
                the settings name are taken as they are.
        """
        if self.config.align == "upstream":
            return cover_and_crop(frames, size=self.config.frame_size)
        return whole_frame(frames, side=self.config.image_px, multiple=multiple)

    @classmethod
    def from_config(cls, config: PriorConfig, *, seed: int = 0) -> Self:
        """Make a prior with random weights of the sizes in ``config``."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: Path | str, config: PriorConfig) -> Self:
        """Read what `save` or the publisher wrote.

        Raises:
            CheckpointError: A part is missing or disagrees with the configuration.
        """
        raise NotImplementedError

    def save(self, path: Path | str) -> None:
        """Write what `load` reads back."""
        raise NotImplementedError


class WeightlessPrior(FrozenPrior):
    """Base of the priors that have nothing to load: a configuration is all of them."""

    @classmethod
    def from_config(cls, config: PriorConfig, *, seed: int = 0) -> Self:  # noqa: ARG003
        """Make the prior; there is nothing random in it."""
        return cls(config)

    @classmethod
    def load(cls, path: Path | str, config: PriorConfig) -> Self:  # noqa: ARG003
        """Make the prior; nothing is read."""
        return cls(config)

    def save(self, path: Path | str) -> None:  # noqa: ARG002
        """Write nothing."""
        return


def pool(tokens: Tensor, grid: tuple[int, int], target: int) -> Tensor:
    """Average-pool (f, rows * columns, c) to (f, target * target, c)."""
    if grid == (target, target):
        return tokens
    image = tokens.transpose(1, 2).unflatten(2, grid)
    return functional.adaptive_avg_pool2d(image, target).flatten(2).transpose(1, 2)
