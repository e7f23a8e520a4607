"""Regression: actions straight from the hidden states.

Shape legend: ``b`` batch, ``t`` steps of a chunk, ``a`` numbers of an action, ``d`` width of the
language model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from vega_policy.policy.heads.diffusion import Draws
    from vega_policy.policy.heads.reading import Read


class L1Head(nn.Module):
    """The regression head of OpenVLA-OFT (arXiv:2502.19645): an MLP with residual blocks per step.

    The ``a`` hidden states of one step are read as one vector of ``a * d`` numbers. The ReLU sits
    inside the residual branch, behind the linear layer; outputs are not squashed.
    """

    def __init__(self, *, source: int, width: int, n_blocks: int, action_size: int) -> None:
        super().__init__()
        self.action_size = action_size
        self.norm_in = nn.LayerNorm(action_size * source)
        self.fc_in = nn.Linear(action_size * source, width)
        self.blocks = nn.ModuleList(_ResidualBlock(width) for _ in range(n_blocks))
        self.norm_out = nn.LayerNorm(width)
        self.fc_out = nn.Linear(width, action_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return normalised actions (b, t, a), float32, for hidden states (b, t * a, d)."""
        # In the head's own precision even under autocast: bfloat16 has 8 bits for an action.
        with torch.autocast(hidden.device.type, enabled=False):
            x = hidden.to(self.fc_in.weight.dtype)
            x = x.unflatten(1, (-1, self.action_size)).flatten(2)
            x = functional.relu(self.fc_in(self.norm_in(x)))
            for block in self.blocks:
                x = block(x)
            return self.fc_out(self.norm_out(x)).float()

    def answer(
        self,
        read: Read,
        *,
        targets: Tensor | None = None,
        draws: Draws | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor | None]:
        """Return actions (b, t, a) and, with targets, their mean absolute error."""
        actions = self(read())
        return actions, None if targets is None else (actions - targets).abs().mean()


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + functional.relu(self.fc(self.norm(x)))
