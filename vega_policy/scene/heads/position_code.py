"""The 3D position code: where a token's surface lies in the room, as sines.

Shape legend: ``...`` any, ``d`` width of the language model, ``a`` numbers of one axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vega_policy.scene.heads.config import CodeConfig


def position_code(points: Tensor, *, width: int, config: CodeConfig) -> Tensor:
    """Return the code (..., d) of points (..., 3) in metres; it has no parameters.

    Each coordinate is clamped, counted in cells from ``low_m`` and rounded; its cell ``p`` becomes
    ``sin(p / T**(2i/a)), cos(p / T**(2i/a))`` side by side for ``i = 0, 1, ...`` with
    ``a = 2 * (d // 6)`` numbers an axis, x first. What is left of ``d`` (2 numbers at 3584, where
    ``a`` is 1194) is zero. As in Video-3D-LLM (arXiv:2412.00493).

    Args:
        points: Aligned frame, any float type; the code is computed in float32.
        width: ``d``.
        config: Range, cell and ``T``.
    """
    low = torch.tensor(config.low_m, device=points.device)
    high = torch.tensor(config.high_m, device=points.device)
    cells = ((points.float().clamp(low, high) - low) / config.cell_m).round()
    per_axis = 2 * (width // 6)
    exponent = torch.arange(0, per_axis, 2, device=points.device, dtype=torch.float32) / per_axis
    angle = cells.unsqueeze(-1) / config.temperature**exponent
    code = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)
    return torch.nn.functional.pad(code, (0, width - 3 * per_axis))


def cell_points(
    points: Tensor, counts: Tensor, *, grid: int, patch_px: int
) -> tuple[Tensor, Tensor]:
    """Return the mean point of every cell of a token grid, and which cells have one.

    The part of the map that the towers' patches cover (378 of 384 pixels with patches of 14) is cut
    into ``grid`` by ``grid`` equal cells.

    Args:
        points: (v, h, w, 3) in metres.
        counts: (v, h, w) True where a point takes part.
        grid: Cells along one side.
        patch_px: Side of a tower's patch in pixels.

    Returns:
        (v, grid**2, 3), zero where nothing takes part, and (v, grid**2) bool.
    """
    side = points.shape[1] // patch_px * patch_px
    size = side // grid
    weight = counts[:, :side, :side].unsqueeze(-1).float()
    total = _cell_sums(points[:, :side, :side].float() * weight, size)
    n = _cell_sums(weight, size)
    return total / n.clamp(min=1), n.squeeze(-1) > 0


def _cell_sums(maps: Tensor, size: int) -> Tensor:
    """Return (v, cells, c) sums of (v, h, w, c) over cells of ``size`` by ``size`` pixels."""
    rows = maps.unflatten(1, (-1, size)).unflatten(3, (-1, size))
    return rows.sum(dim=(2, 4)).flatten(1, 2)
