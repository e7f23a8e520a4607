"""Channel gate: the token gate's mix, weighed channel by channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vega_policy.vision.fusion.fused import Fused, require_same_shape
from vega_policy.vision.fusion.gate import NormedGate

if TYPE_CHECKING:
    from torch import Tensor


class ChannelGateFusion(NormedGate):
    """``tokens = (1 - gate) * prior + gate * semantic`` with one gate per channel of each token.

    The raw streams are mixed, as in `TokenGateFusion`, so the two rules differ in one point only;
    the released code mixes the normalised streams here too.
    """

    def __init__(self, *, width: int, start: float | None = None) -> None:
        """Build the rule.

        Args:
            width: ``d``.
            start: See `start_at`.
        """
        super().__init__(width=width, n_gates=width, start=start)

    def forward(self, semantic: Tensor, prior: Tensor) -> Fused:
        """Mix each pair of channels; `Fused.gate` is the mean over the channels of a token."""
        require_same_shape(semantic, prior)
        gate = self.gate(*self.normed(semantic, prior))
        tokens = (1 - gate) * prior + gate * semantic
        return Fused(tokens=tokens, gate=gate.mean(dim=-1, keepdim=True))
