"""Heads and projectors around the language model.

Shape legend: ``b`` batch, ``t`` steps of a chunk, ``a`` numbers of an action, ``d`` width of the
language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class HeadConfig:
    """What turns hidden states into actions."""

    kind: Literal["l1", "diffusion", "discrete"] = "l1"
    """``l1``: regression, trained with the L1 loss. ``diffusion``: the noise of a DDIM chain.
    ``discrete``: the likeliest of 255 action tokens per number, read from the language model."""
    width: int = 128
    n_blocks: int = 2
    diffusion_steps: int = 50
    """Noise levels of the chain in training (``diffusion`` only)."""
    inference_steps: int = 50
    """Passes of the language model per answer (``diffusion`` only)."""


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
        """Return normalised actions (b, t, a) for hidden states (b, t * a, d)."""
        x = hidden.unflatten(1, (-1, self.action_size)).flatten(2)
        x = functional.relu(self.fc_in(self.norm_in(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc_out(self.norm_out(x))


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + functional.relu(self.fc(self.norm(x)))


class ProprioProjector(nn.Module):
    """Turn normalised proprioception into one token."""

    def __init__(self, *, size: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, proprio: Tensor) -> Tensor:
        """Return (b, 1, d) for (b, size)."""
        return self.fc2(functional.gelu(self.fc1(proprio))).unsqueeze(1)
