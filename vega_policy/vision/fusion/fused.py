"""What every fusion rule returns.

Shape legend: ``b`` batch, ``n`` vision tokens, ``d`` width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Fused:
    """Vision tokens after fusion, with the gate that made them."""

    tokens: Tensor
    """(b, n, d), what the language model reads."""
    gate: Tensor | None
    """(b, v * n, 1), weight of the semantic stream in [0, 1]; at 1 the prior is shut out. None for
    a rule that weighs nothing per token."""


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
