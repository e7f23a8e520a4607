"""The grounding head: which object, if any, does the language model mean.

Shape legend: ``n`` objects, ``d`` width. The zero target ("none of them") is always the last score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from vega_policy.scene.selection import TEMPERATURE

if TYPE_CHECKING:
    from collections.abc import Sequence


class GroundingHead(nn.Module):
    """Compare objects with the state of the language model by the cosine of learned projections."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.zero_target = nn.Parameter(torch.randn(width) * 0.02)
        self.object = _projection(width)
        self.text = _projection(width)

    def forward(self, objects: Tensor, state: Tensor) -> Tensor:
        """Return the cosine (n + 1,) of every object, and of the zero target, with the text.

        Args:
            objects: (n, d) features.
            state: (d,) last hidden state at the grounding token.
        """
        objects = torch.cat([objects, self.zero_target.unsqueeze(0).to(objects)])
        return functional.cosine_similarity(
            self.object(objects).float(), self.text(state).float().unsqueeze(0), dim=-1
        )


def info_nce(scores: Tensor, targets: Sequence[int]) -> Tensor:
    """Return ``-log(sum over targets of e^(s/t) / sum over all of e^(s/t))`` with ``t = 0.07``.

    Args:
        scores: (n + 1,) of `GroundingHead`.
        targets: Indices of the objects that are meant; none means the zero target.

    Raises:
        ValueError: A target is no object.
    """
    n = len(scores) - 1
    wrong = [t for t in targets if not 0 <= t < n]
    if wrong:
        raise ValueError(f"targets {wrong} are no objects; there are {n}, counted from 0")
    logits = scores / TEMPERATURE
    meant = logits[list(targets)] if len(targets) else logits[n:]
    return logits.logsumexp(0) - meant.logsumexp(0)


def _projection(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, width), nn.ReLU(), nn.LayerNorm(width), nn.Linear(width, width)
    )
