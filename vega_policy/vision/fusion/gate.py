"""The score that the gated rules share.

Shape legend: ``b`` batch, ``n`` vision tokens of all views, ``d`` width, ``k`` gates per token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vega_policy.spec.errors import ContractError
from vega_policy.vision.fusion.fused import FusionRule


class NormedGate(FusionRule):
    """``gate = sigmoid(W [LN(prior); LN(semantic)] + c)``, Eq. 7 of VEGA-3D (arXiv:2603.19235v2).

    The paper names no epsilon; it is torch's 1e-5. The released code concatenates the semantic
    stream first, which only permutes the columns of ``W``.
    """

    has_gate = True

    def __init__(self, *, width: int, n_gates: int = 1, start: float | None = None) -> None:
        """Build the score.

        Args:
            width: ``d``.
            n_gates: ``k``.
            start: See `start_at`.
        """
        super().__init__()
        self.norm_prior = nn.LayerNorm(width)
        self.norm_semantic = nn.LayerNorm(width)
        self.score = nn.Linear(2 * width, n_gates)
        start_at(self.score, start)

    def normed(self, semantic: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Return both streams (b, n, d) after their layer norms."""
        return self.norm_semantic(semantic), self.norm_prior(prior)

    def gate(self, semantic: Tensor, prior: Tensor) -> Tensor:
        """Return the gate (b, n, k) of two normed streams (b, n, d)."""
        return torch.sigmoid(self.score(torch.cat([prior, semantic], dim=-1)))


def start_at(score: nn.Linear, gate: float | None) -> None:
    """Let a new gate begin at one value for every token.

    Args:
        score: The linear layer in front of the sigmoid.
        gate: First weight of the semantic stream, strictly between 0 and 1. Near 0 the prior is
            trusted at first, near 1 it is hardly heard. None leaves torch's initial weights, which
            begin near 0.5 and differ a little from token to token.

    Raises:
        ContractError: ``gate`` is not strictly between 0 and 1.
    """
    if gate is None:
        return
    if not 0 < gate < 1:
        raise ContractError(
            f"fusion.gate_start is {gate:g}, expected a number strictly between 0 and 1: a sigmoid "
            "reaches neither; 0.5 mixes evenly"
        )
    nn.init.zeros_(score.weight)
    nn.init.constant_(score.bias, math.log(gate / (1 - gate)))
