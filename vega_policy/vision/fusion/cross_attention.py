"""Cross-attention: every semantic token looks for what it needs in the prior's view.

Shape legend: ``b`` batch, ``v`` views (cameras), ``n`` tokens of one view, ``d`` width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vega_policy.spec.errors import ContractError
from vega_policy.vision.fusion.fused import Fused, FusionRule, require_same_shape

HEADS = 8


class CrossAttentionFusion(FusionRule):
    """Pre-norm blocks: semantic tokens ask, the prior's tokens of the same view answer.

    As in the released code (8 heads, a sine code of row and column on queries and keys, an MLP four
    times as wide), but without its dropout, so that an update stays a function of its batch.
    """

    def __init__(self, *, width: int, grid: int, n_layers: int = 1) -> None:
        """Build the rule.

        Args:
            width: ``d``, divisible by 8.
            grid: Tokens along one side of a view.
            n_layers: Blocks; each asks the same prior.

        Raises:
            ContractError: ``width`` cannot be split over the heads, or there is no layer.
        """
        super().__init__()
        if width % HEADS or n_layers < 1:
            raise ContractError(
                f"cross_attention got width {width} and fusion.layers={n_layers}, expected a width "
                f"divisible by {HEADS} and at least one layer; choose another rule or width"
            )
        self.grid = grid
        self.blocks = nn.ModuleList(_Block(width) for _ in range(n_layers))

    def forward(self, semantic: Tensor, prior: Tensor) -> Fused:
        """Attend within each view, for tokens (b, v * n, d); see `FusionRule.forward`."""
        require_same_shape(semantic, prior)
        n, d = self.grid**2, semantic.shape[-1]
        place = grid_code(self.grid, d, device=semantic.device).to(semantic.dtype)
        tokens, source = semantic.reshape(-1, n, d), prior.reshape(-1, n, d)
        for block in self.blocks:
            tokens = block(tokens, source, place)
        return Fused(tokens=tokens.reshape(semantic.shape), gate=None)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(width)
        self.norm_key = nn.LayerNorm(width)
        self.norm_value = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor, source: Tensor, place: Tensor) -> Tensor:
        """Return tokens (b * v, n, d); ``place`` (n, d) is added to queries and keys."""
        answer, _ = self.attention(
            self.norm_query(tokens) + place,
            self.norm_key(source) + place,
            self.norm_value(source),
            need_weights=False,
        )
        tokens = tokens + answer
        return tokens + self.mlp(self.norm_mlp(tokens))


def grid_code(grid: int, width: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Return the sine code (grid * grid, width): rows in the first half, columns in the second."""
    quarter = width // 4
    frequencies = 10000.0 ** -(torch.arange(quarter, device=device) / quarter)
    angles = torch.arange(grid, device=device)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=-1)
    rows = line[:, None].expand(grid, grid, -1)
    columns = line[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)
