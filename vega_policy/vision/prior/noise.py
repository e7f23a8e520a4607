"""A control of the prior's features: noise, whatever the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vega_policy.vision.prior.draws import unit_noise
from vega_policy.vision.prior.frozen import WeightlessPrior

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class NoisePrior(WeightlessPrior):
    """Unit noise where a prior would put its features; no network runs.

    With ``noise="keyed"`` every observation has its own, drawn from its key, as a prior without any
    image content would give; with ``"constant"`` it is the same everywhere, a learnable constant.
    The paper's t = 1 is another control: Wan's transformer on noise (``prior.noise_level=1``).
    """

    def encode(self, frames: Tensor, *, keys: Sequence[int]) -> tuple[Tensor, tuple[int, int]]:
        """Return noise; see `FrozenPrior.encode`."""
        b, v = frames.shape[:2]
        side = self.config.grid
        noise = unit_noise(self.config, keys, views=v, shape=(side * side, self.width))
        return noise.unflatten(0, (b, v)).to(frames), (side, side)
