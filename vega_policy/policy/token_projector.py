"""Plain numbers as tokens of the language model: proprioception, and the noisy actions of diffusion."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class TokenProjector(nn.Module):
    """Two linear layers with exact GELU in between, as in OpenVLA-OFT.

    Computes in its own precision: published ones are float32 beside a bfloat16 language model.
    """

    def __init__(self, *, size: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return (..., width) for (..., size)."""
        return self.fc2(functional.gelu(self.fc1(numbers.to(self.fc1.weight.dtype))))
