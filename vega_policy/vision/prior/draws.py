"""What a prior draws, as a function of explicit arguments."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vega_policy.vision.prior.config import PriorConfig


def generator(*parts: int) -> torch.Generator:
    """Return a generator whose state depends on every part, in every process alike."""
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def unit_noise(
    config: PriorConfig,
    keys: Sequence[int],
    *,
    views: int,
    shape: Sequence[int],
    stream: tuple[int, ...] = (),
) -> Tensor:
    """Return unit noise (b * views, *shape), a function of arguments and settings alone.

    With ``config.noise == "constant"`` every frame gets the same draw, else each observation its
    own by its key. Always drawn on the CPU, so that a GPU sees the same numbers. A second draw of
    the same prior needs a ``stream`` of its own.
    """
    seed = config.noise_seed
    if config.noise == "constant":
        one = torch.randn(tuple(shape), generator=generator(seed, *stream))
        return one.expand(len(keys) * views, *shape)
    return torch.cat(
        [torch.randn(views, *shape, generator=generator(seed, key, *stream)) for key in keys]
    )
