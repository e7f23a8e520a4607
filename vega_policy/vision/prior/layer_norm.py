"""A control without a second encoder: the semantic tokens themselves stand where a prior would.

Shape legend: ``b`` batch, ``v`` views (cameras), ``n`` tokens of one view, ``c`` semantic width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

from vega_policy.spec.errors import ContractError
from vega_policy.vision.prior.frozen import WeightlessPrior

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class LayerNormPrior(WeightlessPrior):
    """What a policy gains from layer norm, projector and gate alone, with nothing new to read.

    It has no weights and runs no network. ``reads_semantic`` tells the vision stream to pass the
    semantic towers' tokens (before the semantic projector) to `from_semantic`, where every other
    prior gets frames in `features`; ``config.width`` is therefore the towers' width, and nothing
    can be cached, because the towers may be trained.
    """

    reads_semantic = True

    def from_semantic(self, tokens: Tensor) -> Tensor:
        """Return the semantic tokens (b, v, n, c), normalised over ``c`` without learned weights.

        No gradient flows back: like every prior's, these features are an input of the branch and
        not a second way to train the towers.

        Raises:
            ContractError: The tokens do not have ``config.width`` channels.
        """
        if tokens.shape[-1] != self.width:
            raise ContractError(
                f"prior layer_norm has width {self.width}, the semantic tokens have "
                f"{tokens.shape[-1]}; set prior.width={tokens.shape[-1]}"
            )
        return functional.layer_norm(tokens.detach().float(), (self.width,))

    def features(self, frames: Tensor, *, keys: Sequence[int]) -> Tensor:  # noqa: ARG002
        """Refuse: there is nothing to compute from frames.

        Raises:
            ContractError: Always.
        """
        raise ContractError(
            "prior layer_norm reads the semantic tokens, not frames, so its features cannot be "
            "made or cached apart from the policy; call the vision stream without prior features"
        )
