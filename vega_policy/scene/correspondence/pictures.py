"""Matched voxels of two views, coloured by their cosine; and all rows of a measurement as bars.

Shape legend: as in `matches`.
"""

# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from vega_policy.scene.correspondence.controls import CONTROLS
from vega_policy.scene.correspondence.matches import CorrespondenceSettings, find_matches
from vega_policy.scene.correspondence.score import match_cosines
from vega_policy.spec import ContractError
from vega_policy.spec.files import atomic_path

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from vega_policy.scene.correspondence.features import FeatureMap, Floats, Source
    from vega_policy.scene.correspondence.matches import Matches
    from vega_policy.scene.correspondence.measure import Measurement
    from vega_policy.scene.scan import Scan

BESIDE = ("constant + 5 % noise", "random conv net", "xyz oracle")
"""Controls drawn below a source."""
_SOURCE, _CONTROL = "#1f6feb", "#9aa4ae"
_PANELS = (
    ("mvcs", "mvcs, with negative pairs (|)"),
    ("mvcs_centred", "mvcs_centred"),
    ("gap", "gap = mvcs - mvcs_negative"),
)


def draw_matches(
    scan: Scan, source: Source, path: Path, *, settings: CorrespondenceSettings | None = None
) -> None:
    """Draw the voxels that two views share, for a source and the controls of `BESIDE`.

    Lines join a voxel's places in both views; their colour is the cosine of the two features, as they
    are on the left, and without the scene's mean feature on the right. The two views are the ones with
    the most voxels in common among those at least an eighth of the scan apart.

    Raises:
        ContractError: No two such views share a voxel.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    features = source(scan)
    matches = find_matches(scan, grid=features.grid, window=features.window, settings=settings)
    drawn = {source.name: features.tokens}
    drawn |= {name: CONTROLS[name](scan, matches, features.window) for name in BESIDE}
    i, j, members = _chosen(matches, len(scan.frames), scan.scene_id)
    left, right = (scan.frames[k].image for k in (i, j))
    gap = max(2, left.shape[1] // 40)
    white = np.full((left.shape[0], gap, 3), 255, dtype=np.uint8)
    picture = np.concatenate([left, white, right], axis=1)
    centres = _centres(matches, features, left.shape)
    starts, ends = centres[matches.first[members]], centres[matches.second[members]].copy()
    ends[:, 0] += left.shape[1] + gap
    scale = Normalize(-1.0, 1.0)
    rows = len(drawn)
    aspect = picture.shape[0] / picture.shape[1]
    figure = Figure(figsize=(12, rows * (5.6 * aspect + 0.3)), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    for row, (name, tokens) in zip(axes, drawn.items(), strict=True):
        for axis, is_centred in zip(row, (False, True), strict=True):
            shown = tokens - _mean_token(tokens, matches) if is_centred else tokens
            cosine = match_cosines(shown, matches)[members]
            axis.imshow(picture)
            lines = LineCollection(np.stack([starts, ends], axis=1), linewidths=0.9, alpha=0.8)
            dots = np.concatenate([starts, ends])
            lines.set(array=cosine, cmap="RdYlGn", norm=scale)
            axis.add_collection(lines)
            axis.scatter(*dots.T, c=np.tile(cosine, 2), cmap="RdYlGn", norm=scale, s=9)
            axis.set_axis_off()
            what = "centred" if is_centred else "as it is"
            mean = np.nanmean(cosine) if np.isfinite(cosine).any() else math.nan
            axis.set_title(f"{name}, {what}: mean cosine {mean:.2f}", fontsize=9)
    figure.colorbar(
        ScalarMappable(norm=scale, cmap="RdYlGn"), ax=axes, shrink=0.5, label="cosine of a match"
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90)


def draw_rows(measurement: Measurement, path: Path) -> None:
    """Draw the four numbers of every row with their intervals; controls in grey, a grid to a row."""
    from matplotlib.figure import Figure

    grids = sorted({score.grid for score in measurement.scores})
    counts = [sum(score.grid == grid for score in measurement.scores) for grid in grids]
    figure = Figure(figsize=(12, 0.24 * sum(counts) + 0.9 * len(grids)), layout="constrained")
    axes = figure.subplots(
        len(grids), 3, squeeze=False, sharey="row", sharex="col", height_ratios=counts
    )
    for row, grid in zip(axes, grids, strict=True):
        scores = [score for score in measurement.scores if score.grid == grid]
        places = np.arange(len(scores))
        colours = [_CONTROL if score.is_control else _SOURCE for score in scores]
        for axis, (number, title) in zip(row, _PANELS, strict=True):
            values = np.array([getattr(score, number) for score in scores])
            axis.barh(places, 100 * np.nan_to_num(values), color=colours, height=0.66)
            for place, score in zip(places, scores, strict=True):
                interval = score.intervals[number]
                if interval is not None:
                    axis.plot([100 * v for v in interval], [place, place], color="black", lw=1.2)
                if math.isnan(getattr(score, number)):
                    axis.text(1, place, "no direction", va="center", fontsize=7)
            if number == "mvcs":
                negative = [100 * score.mvcs_negative for score in scores]
                axis.scatter(negative, places, marker="|", s=60, color="#d1242f", zorder=3)
            axis.set_title(f"{title}, %, {grid[0]}x{grid[1]} tokens", fontsize=9)
            axis.grid(visible=True, axis="x", alpha=0.25)
            axis.axvline(0, color="black", lw=0.6)
        row[0].set_yticks(places, [score.name for score in scores], fontsize=8)
        row[0].invert_yaxis()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90)


def _chosen(matches: Matches, n_views: int, scene_id: str) -> tuple[int, int, NDArray[np.int64]]:
    """Return two views and their matches."""
    a, b = matches.view[matches.first], matches.view[matches.second]
    counts = np.zeros((n_views, n_views), dtype=np.int64)
    np.add.at(counts, (a, b), 1)
    apart = np.subtract.outer(np.arange(n_views), np.arange(n_views))
    counts[np.abs(apart) < max(1, n_views // 8)] = 0
    if not counts.any():
        raise ContractError(
            f"no two views of scene {scene_id} share a voxel; use larger voxels or another scene"
        )
    i, j = (int(k) for k in np.unravel_index(counts.argmax(), counts.shape))
    return i, j, np.flatnonzero((a == i) & (b == j))


def _centres(matches: Matches, features: FeatureMap, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return (g, 2) x and y in pixels: the mean over the tokens of each voxel in each view."""
    rows, columns = matches.grid
    cell = matches.token % (rows * columns)
    top, left, bottom, right = features.window
    x = (left + (cell % columns + 0.5) / columns * (right - left)) * shape[1]
    y = (top + (cell // columns + 0.5) / rows * (bottom - top)) * shape[0]
    n = np.bincount(matches.group)
    return np.stack([np.bincount(matches.group, weights=values) / n for values in (x, y)], axis=1)


def _mean_token(tokens: Floats, matches: Matches) -> Floats:
    return tokens[np.isfinite(matches.points).all(axis=-1)].mean(axis=0)
