"""The exponential moving average of the trained weights, which is what gets evaluated."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Average:
    """A float32 copy of some weights that follows them slowly.

    The decay starts small, ``(1 + step) / (10 + step)``, so that the random start is forgotten in the
    first steps and not after ``1 / (1 - decay)`` of them. A decay of 0 keeps no copies: the average
    then is the weights themselves.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, decay: float) -> None:
        self._weights = dict(weights) if decay else {}
        self._decay = decay
        self._copies = {k: v.detach().float().clone() for k, v in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after update ``step`` (from 0)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, copy in self._copies.items():
            copy.lerp_(self._weights[name].detach().float(), 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages themselves, not copies."""
        return self._copies

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from saved averages."""
        for name, copy in self._copies.items():
            copy.copy_(state[name])

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Put the averages in place of the weights; the weights come back bit by bit."""
        kept = {k: v.detach().clone() for k, v in self._weights.items()}
        try:
            for name, weight in self._weights.items():
                weight.copy_(self._copies[name])
            yield
        finally:
            for name, weight in self._weights.items():
                weight.copy_(kept[name])
