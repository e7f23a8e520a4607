"""Whether a written scan says one thing: depth, poses, alignment, boxes, masks and counts against each other.

Everything is read back from the files, so that the check goes through each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from envs.scan.export import INSTANCES
from vega_policy.scene.readers.scannet import read_scan
from vega_policy.scene.truth import TRUTH_FILE, read_truth
from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from vega_policy.scene.scan import Scan

_NEAR_M = 0.01
_FEW_POINTS = 50
INSIDE = 0.98
"""Least share of an object's depth points in its box."""


@dataclass(frozen=True, eq=False)
class ScanCheck:
    """Figures of one scan; shares are in [0, 1]."""

    scene_id: str
    inside: dict[int, float]
    """By object of at least 50 depth points: share of them in its box, give or take 1 cm."""
    filled: dict[int, float]
    """Alike: how much of the box's longest side the points span."""
    n_points: int
    """Depth points on objects."""
    floating: float
    """Share of points that another view sees through: the surface there lies more than 1 cm behind.
    What is hidden in the other view is no contradiction."""
    same_object: float
    """Share of points another view sees too (within 1 cm) that belong to the same object there."""
    n_pairs: int
    """Points projected into another view and falling on its image."""
    colour: float
    """Mean absolute difference of the colours of such points, of 255."""
    turn_deg: float
    """How far the world is turned against the aligned frame, to the nearest axis."""
    miscounted: tuple[int, ...]
    """Objects whose pixel counts are not those of the masks."""

    @property
    def is_good(self) -> bool:
        """Whether nothing contradicts."""
        shares = [*self.inside.values(), self.same_object, 1 - self.floating]
        return min(shares) >= INSIDE and not self.miscounted


@dataclass
class _Pairs:
    """Sums over points projected into another view."""

    n: int = 0
    n_floating: int = 0
    n_seen: int = 0
    n_same: int = 0
    colour: float = 0.0


def check_scan(root: Path | str, scene_id: str) -> ScanCheck:
    """Check one scan of an export.

    Raises:
        ContractError: Files are missing or broken.
    """
    folder = Path(root) / scene_id
    truth = read_truth(folder / TRUTH_FILE)
    scan = read_scan(root, scene_id, n_frames=len(truth.frames))
    masks = np.stack([_mask(folder / INSTANCES / f"{f.index}.png") for f in scan.frames])
    depths = np.stack([_depth(scan, k) for k in range(len(scan.frames))])
    points = np.stack([_points(scan, k, depth) for k, depth in enumerate(depths)])
    inside: dict[int, float] = {}
    filled: dict[int, float] = {}
    for item in scan.objects:
        mine = points[(masks == item.object_id + 1) & (depths > 0)]
        if len(mine) < _FEW_POINTS:
            continue
        centre, half = item.box[:3], item.box[3:] / 2
        is_in = (np.abs(mine - centre) <= half + _NEAR_M).all(axis=1)
        inside[item.object_id] = float(is_in.mean())
        longest = int(np.argmax(half))
        filled[item.object_id] = float(np.ptp(mine[:, longest]) / (2 * half[longest]))
    pairs = _compare(scan, points, depths, masks)
    counted = {
        o.object_id: np.array_equal(o.visible_px, (masks == o.object_id + 1).sum(axis=(1, 2)))
        for o in truth.objects
    }
    heading = np.degrees(np.arctan2(scan.axis_alignment[1, 0], scan.axis_alignment[0, 0]))
    return ScanCheck(
        scene_id=scene_id,
        inside=inside,
        filled=filled,
        n_points=int(((masks > 0) & (depths > 0)).sum()),
        n_pairs=pairs.n,
        floating=pairs.n_floating / max(pairs.n, 1),
        same_object=pairs.n_same / max(pairs.n_seen, 1),
        colour=pairs.colour / max(pairs.n_seen, 1),
        turn_deg=float(abs((heading + 45) % 90 - 45)),
        miscounted=tuple(k for k, agrees in counted.items() if not agrees),
    )


def summary(checks: Iterable[ScanCheck]) -> dict[str, float | int | list[str]]:
    """Bring the figures of many scans into one row."""
    every = list(checks)
    inside = np.array([share for c in every for share in c.inside.values()])
    filled = np.array([share for c in every for share in c.filled.values()])
    n_pairs = np.array([c.n_pairs for c in every])

    def mean(values: list[float]) -> float:
        return float(np.average(values, weights=np.maximum(n_pairs, 1)))

    return {
        "scans": len(every),
        "objects": len(inside),
        "points": sum(c.n_points for c in every),
        "least_inside": float(inside.min()),
        "mean_inside": float(inside.mean()),
        "objects_below_98": int((inside < INSIDE).sum()),
        "median_filled": float(np.median(filled)),
        "pairs": int(n_pairs.sum()),
        "floating": mean([c.floating for c in every]),
        "same_object": mean([c.same_object for c in every]),
        "colour_difference": mean([c.colour for c in every]),
        "least_turn_deg": min(c.turn_deg for c in every),
        "contradictory": [c.scene_id for c in every if not c.is_good],
    }


def _mask(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    if not path.is_file():
        raise ContractError(f"no file {path}, so nothing can be checked; render the scan again")
    with Image.open(path) as image:
        return np.asarray(image)


def _depth(scan: Scan, k: int) -> NDArray[np.float64]:
    depth = scan.frames[k].depth_m
    if depth is None:
        raise ContractError(f"{scan.scene_id} has no depth, so nothing can be checked")
    return depth.astype(np.float64)


def _points(scan: Scan, k: int, depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lift a frame: (h, w, 3) in the aligned frame."""
    rows, columns = np.indices(depth.shape)
    inverse = np.linalg.inv(scan.depth_intrinsics)
    rays = np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ inverse.T
    to_aligned = scan.axis_alignment @ scan.frames[k].pose
    return (rays * depth[..., None]) @ to_aligned[:3, :3].T + to_aligned[:3, 3]


def _compare(
    scan: Scan,
    points: NDArray[np.float64],
    depths: NDArray[np.float64],
    masks: NDArray[np.uint8],
) -> _Pairs:
    """Look at each frame's points from the next frame and from one a third of the walk on."""
    from scipy import ndimage

    n, height, width = depths.shape
    near = np.stack([ndimage.minimum_filter(d, size=3) for d in depths])
    pairs = _Pairs()
    for i in range(n):
        for j in sorted({(i + 1) % n, (i + n // 3) % n} - {i}):
            to_camera = np.linalg.inv(scan.axis_alignment @ scan.frames[j].pose)
            mine = depths[i] > 0
            there = points[i][mine] @ to_camera[:3, :3].T + to_camera[:3, 3]
            in_front = there[:, 2] > _NEAR_M
            pixel = there[in_front] @ scan.depth_intrinsics.T
            column, row = np.rint(pixel[:, :2] / pixel[:, 2:]).astype(np.int64).T
            on = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            at = (row[on], column[on])
            z, other = there[in_front][on][:, 2], depths[j][at]
            is_seen = np.abs(z - other) <= _NEAR_M
            masked = [masks[i][mine][in_front][on], masks[j][at]]
            colours = [
                scan.frames[i].image[mine][in_front][on].astype(float),
                scan.frames[j].image[at],
            ]
            pairs.n += len(z)
            # Next to an edge the ray of the other pixel may pass it: take the nearest surface around.
            pairs.n_floating += int((z < near[j][at] - _NEAR_M).sum())
            pairs.n_seen += int(is_seen.sum())
            pairs.n_same += int((masked[0] == masked[1])[is_seen].sum())
            pairs.colour += float(np.abs(colours[0] - colours[1]).mean(axis=1)[is_seen].sum())
    return pairs
