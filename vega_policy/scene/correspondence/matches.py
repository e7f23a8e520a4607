"""Which tokens of two views show the same place: pose and depth put every token into a voxel.

Nothing here looks at a feature, so matches are made once per scan and grid.

Shape legend: ``v`` views, ``r, k`` rows and columns of the token grid, ``t`` tokens that lie in a used
voxel, ``g`` pairs of a voxel and a view that sees it, ``p`` matches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vega_policy.scene.correspondence.features import WHOLE, Window
from vega_policy.spec import ContractError
from vega_policy.spec.names import require_name

if TYPE_CHECKING:
    from vega_policy.scene.scan import Frame, Scan

Pairs = Literal["all", "adjacent"]
Mean = Literal["pair", "voxel", "view_pair"]


@dataclass(frozen=True, kw_only=True)
class CorrespondenceSettings:
    """What the paper's definition leaves open (VEGA-3D, arXiv:2603.19235v2, Eq. 3), decided.

    The origin of the voxels is not among it: it is that of the aligned frame, for all views of a scan.
    """

    voxel_m: float = 0.1
    """Side of a voxel, 0.1 m in the paper; on a table top, where that is an object, 0.02 to 0.05."""
    pairs: Pairs = "all"
    """``all``: every two views of a voxel. ``adjacent``: only views that follow each other, as in the
    nearest script that was released."""
    mean: Mean = "pair"
    """What counts once in the score of a scene. ``pair``: a voxel in two views. ``voxel``: a voxel,
    however many views see it. ``view_pair``: two views, however many voxels they share (that script)."""
    masked: bool = True
    """A token's place is the mean over its pixels *with* depth. False takes in pixels without as points
    at the camera, as that script does."""
    min_depth_share: float = 0.1
    """A token with depth at a smaller share of its pixels has no place."""

    def __post_init__(self) -> None:
        """Refuse values without meaning.

        Raises:
            ContractError: See there.
        """
        require_name(self.pairs, get_args(Pairs), what="pairs")
        require_name(self.mean, get_args(Mean), what="mean")
        if not self.voxel_m > 0:
            raise ContractError(f"voxel_m is {self.voxel_m}, expected metres above 0; 0.1 is usual")
        if not 0 < self.min_depth_share <= 1:
            raise ContractError(
                f"min_depth_share is {self.min_depth_share}, expected a share in (0, 1]; 0.1 is usual"
            )


@dataclass(frozen=True, eq=False)
class Matches:
    """Voxels of a scan that two or more views see."""

    grid: tuple[int, int]
    token: NDArray[np.int64]
    """(t,) flat index of a token in (v, r, k)."""
    group: NDArray[np.int64]
    """(t,) its voxel-and-view, a row of ``voxel`` and ``view``."""
    voxel: NDArray[np.int64]
    """(g,) number of the voxel, ascending."""
    view: NDArray[np.int64]
    """(g,)."""
    first: NDArray[np.int64]
    """(p,) voxel-and-view of each match in the earlier view ..."""
    second: NDArray[np.int64]
    """(p,) ... and in the later one; of the same voxel."""
    points: NDArray[np.float64]
    """(v, r, k, 3) place of every token in metres, aligned frame; NaN where it has none."""


def find_matches(
    scan: Scan,
    *,
    grid: tuple[int, int],
    window: Window = WHOLE,
    settings: CorrespondenceSettings | None = None,
) -> Matches:
    """Put the tokens of a scan into voxels and pair what views share.

    Args:
        scan: Every frame with depth.
        grid: Rows and columns of tokens.
        window: Part of the image they cover.
        settings: None takes the defaults.
    """
    settings = settings or CorrespondenceSettings()
    points = np.stack(
        [
            token_points(frame, scan, grid=grid, window=window, settings=settings)
            for frame in scan.frames
        ]
    )
    flat = points.reshape(-1, 3)
    token = np.flatnonzero(np.isfinite(flat).all(axis=1))
    view = token // (grid[0] * grid[1])
    cell = np.floor(flat[token] / settings.voxel_m).astype(np.int64)
    _, voxel = np.unique(cell, axis=0, return_inverse=True)
    voxel = voxel.reshape(-1)
    n_views = len(scan.frames)
    keys, group = np.unique(voxel * n_views + view, return_inverse=True)
    group_voxel, group_view = np.divmod(keys, n_views)
    first, second = _pairs(group_voxel)
    if settings.pairs == "adjacent":
        near = group_view[second] - group_view[first] == 1
        first, second = first[near], second[near]
    used = np.zeros(len(keys), dtype=bool)
    used[first] = used[second] = True
    number = np.cumsum(used) - 1
    kept = used[group]
    return Matches(
        grid=grid,
        token=token[kept],
        group=number[group[kept]],
        voxel=group_voxel[used],
        view=group_view[used],
        first=number[first],
        second=number[second],
        points=points,
    )


def token_points(
    frame: Frame,
    scan: Scan,
    *,
    grid: tuple[int, int],
    window: Window,
    settings: CorrespondenceSettings,
) -> NDArray[np.float64]:
    """Return the place (r, k, 3) of every token of a frame, NaN where it has none.

    A depth pixel belongs to the token its ray meets in the *colour* image, through both cameras'
    intrinsics (their centres are taken to be one, as ScanNet's depth is registered).
    """
    depth = frame.depth_m
    if depth is None:
        raise ValueError("the frame has no depth; leave it out before")
    hd, wd = depth.shape
    rays_x = (np.arange(wd) - scan.depth_intrinsics[0, 2]) / scan.depth_intrinsics[0, 0]
    rays_y = (np.arange(hd) - scan.depth_intrinsics[1, 2]) / scan.depth_intrinsics[1, 1]
    height, width = frame.image.shape[:2]
    k = scan.intrinsics
    top, left, bottom, right = window
    rows = _cells((rays_y * k[1, 1] + k[1, 2] + 0.5) / height, top, bottom, grid[0])
    columns = _cells((rays_x * k[0, 0] + k[0, 2] + 0.5) / width, left, right, grid[1])
    is_inside = (rows >= 0)[:, None] & (columns >= 0)[None, :]
    cell = rows[:, None] * grid[1] + columns[None, :]
    n = grid[0] * grid[1]
    is_measured = is_inside & (depth > 0)
    n_pixels = np.bincount(cell[is_inside], minlength=n)
    n_measured = np.bincount(cell[is_measured], minlength=n)
    # A pixel without depth is a point at the camera: it adds nothing but its number.
    n_taken = n_measured if settings.masked else n_pixels
    z = depth.astype(np.float64)
    camera = (rays_x[None, :] * z, rays_y[:, None] * z, z)
    has_place = (n_measured > 0) & (n_measured >= settings.min_depth_share * n_pixels)
    points = np.full((n, 3), np.nan)
    for axis, values in enumerate(camera):
        total = np.bincount(cell[is_measured], weights=values[is_measured], minlength=n)
        points[has_place, axis] = total[has_place] / n_taken[has_place]
    to_aligned = scan.axis_alignment @ frame.pose
    return (points @ to_aligned[:3, :3].T + to_aligned[:3, 3]).reshape(*grid, 3)


def _cells(share: NDArray[np.float64], low: float, high: float, n: int) -> NDArray[np.int64]:
    """Return which of ``n`` equal cells between ``low`` and ``high`` a share falls in; -1 outside."""
    place = np.floor((share - low) / (high - low) * n).astype(np.int64)
    return np.where((place >= 0) & (place < n), place, -1)


def _pairs(voxel: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return every two places i < j of a sorted array that hold the same value."""
    firsts: list[NDArray[np.int64]] = []
    seconds: list[NDArray[np.int64]] = []
    index = np.arange(len(voxel))
    # A voxel's views stand together: the one `step` further is of the same voxel or none is.
    for step in range(1, len(voxel)):
        same = voxel[step:] == voxel[:-step]
        if not same.any():
            break
        firsts.append(index[:-step][same])
        seconds.append(index[step:][same])
    if not firsts:
        return index[:0], index[:0]
    return np.concatenate(firsts), np.concatenate(seconds)
