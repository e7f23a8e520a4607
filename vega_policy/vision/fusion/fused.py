"""What every fusion rule is, and what it returns.

Shape legend: ``b`` batch, ``n`` vision tokens of all views, ``d`` width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Fused:
    """Vision tokens after fusion, with the gate that made them."""

    tokens: Tensor
    """(b, n, d), what the language model reads; (b, 2n, d) from `SequenceConcatFusion`."""
    gate: Tensor | None
    """(b, n, 1), weight of the semantic stream in [0, 1]; at 1 the prior is shut out. None for a
    rule that weighs nothing per token."""


class FusionRule(nn.Module):
    """Base of the rules: two streams of equal shape in, one out."""

    has_gate = False
    """Whether `Fused.gate` is there."""

    def forward(self, semantic: Tensor, prior: Tensor) -> Fused:
        """Join the streams.

        Args:
            semantic: (b, n, d) projected tokens of the semantic towers, view by view, row-major.
            prior: (b, n, d) projected features of the prior at the same places.

        Raises:
            ValueError: The two streams differ in shape.
        """
        raise NotImplementedError


def require_same_shape(semantic: Tensor, prior: Tensor) -> None:
    """Refuse streams that do not match token by token.

    Raises:
        ValueError: The two streams differ in shape.
    """
    if semantic.shape != prior.shape:
        raise ValueError(
            f"prior is {tuple(prior.shape)}, semantic is {tuple(semantic.shape)}; "
            "project the prior and resample it to the semantic grid first"
        )
